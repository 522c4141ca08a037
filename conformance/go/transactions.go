package main

import (
	"bytes"
	"fmt"
	"math/rand"
	"strings"

	"github.com/codenotary/immudb/pkg/api/schema"
	"github.com/codenotary/immudb/pkg/stream"
)

func kv(key []byte, value string) *schema.Op {
	return &schema.Op{Operation: &schema.Op_Kv{Kv: &schema.KeyValue{Key: key, Value: []byte(value)}}}
}

func ref(request *schema.ReferenceRequest) *schema.Op {
	return &schema.Op{Operation: &schema.Op_Ref{Ref: request}}
}

func zadd(request *schema.ZAddRequest) *schema.Op {
	return &schema.Op{Operation: &schema.Op_ZAdd{ZAdd: request}}
}

// operations writes two values, a free and an own reference, and a member of a sorted set.
func (f *flow) operations() *schema.TxHeader {
	first, second := f.key("first"), f.key("second")
	return ok(f.db.ExecAll(f.ctx, &schema.ExecAllRequest{Operations: []*schema.Op{
		kv(first, "1"), kv(second, "2"),
		ref(&schema.ReferenceRequest{Key: f.key("free"), ReferencedKey: first}),
		ref(&schema.ReferenceRequest{Key: f.key("own"), ReferencedKey: first, BoundRef: true}),
		zadd(&schema.ZAddRequest{Set: f.key(""), Score: 1.5, Key: second}),
	}}))
}

func manyOperations(f *flow) {
	header := f.operations()
	same(header.Nentries, 5, "entries of ExecAll")
	ok(f.db.VerifiedSet(f.ctx, f.key("first"), []byte("changed")))
	same(value(f.db.VerifiedGet(f.ctx, f.key("free"))), "changed", "a free reference")
	same(value(f.db.VerifiedGet(f.ctx, f.key("own"))), "1", "a reference bound to its own transaction")
	for text, request := range map[string]*schema.ExecAllRequest{
		"empty set": {},
		"rpc error: code = InvalidArgument desc = duplicated keys are not supported in single batch transaction: key/reference '" +
			f.Space + "twice'": {Operations: []*schema.Op{kv(f.key("twice"), "1"), kv(f.key("twice"), "2")}},
		"precondition failed: KeyMustNotExist": {
			Operations:    []*schema.Op{kv(f.key("third"), "3")},
			Preconditions: []*schema.Precondition{schema.PreconditionKeyMustNotExist(f.key("first"))},
		},
	} {
		_, err := f.db.ExecAll(f.ctx, request)
		refused(err, text)
	}
	_, err := f.db.Get(f.ctx, f.key("third"))
	refused(err, "tbtree: key not found")
}

func transactions(f *flow) {
	id := f.operations().Id
	raw := ok(f.db.TxByID(f.ctx, id))
	same(len(raw.Entries), 5, "TxByID")
	// The SDK takes the prefix off what has none of a sorted set.
	same(string(raw.Entries[1].Key), string(f.key("second")), "a key of TxByID")
	same(raw.Entries[1].VLen, 2, "the length of a value of TxByID")
	verified := ok(f.db.VerifiedTxByID(f.ctx, id))
	same(bytes.Equal(verified.Header.EH, raw.Header.EH), true, "the hash of VerifiedTxByID")
	spec := func(action schema.EntryTypeAction) *schema.EntriesSpec {
		return &schema.EntriesSpec{
			KvEntriesSpec: &schema.EntryTypeSpec{Action: action},
			ZEntriesSpec:  &schema.EntryTypeSpec{Action: action},
		}
	}
	with := func(action schema.EntryTypeAction) *schema.Tx {
		return ok(f.db.TxByIDWithSpec(f.ctx, &schema.TxRequest{Tx: id, EntriesSpec: spec(action)}))
	}
	same(len(with(schema.EntryTypeAction_EXCLUDE).Entries), 0, "nothing asked for")
	same(len(with(schema.EntryTypeAction_ONLY_DIGEST).Entries), 5, "digests")
	same(string(with(schema.EntryTypeAction_RAW_VALUE).Entries[0].Value), "\x001", "a raw value")
	resolved := with(schema.EntryTypeAction_RESOLVE)
	same(len(resolved.KvEntries), 4, "resolved entries")
	same(string(resolved.KvEntries[2].ReferencedBy.GetKey()), string(f.key("free")), "a resolved reference")
	same(len(resolved.ZEntries), 1, "resolved members")
	same(string(resolved.ZEntries[0].Entry.Value), "2", "a resolved member")
	next := ok(f.db.Set(f.ctx, f.key("next"), nil)).Id
	for _, down := range []bool{false, true} {
		request := &schema.TxScanRequest{InitialTx: id, Limit: 2500, EntriesSpec: spec(schema.EntryTypeAction_EXCLUDE), Desc: down}
		expected := id
		found := ok(f.db.TxScan(f.ctx, request)).Txs
		for _, tx := range found {
			same(tx.Header.Id, expected, "TxScan leaves nothing out")
			if expected++; down {
				expected -= 2
			}
		}
		same(down || expected > next, true, "TxScan goes to the end")
		same(len(found) > 0, true, "TxScan begins there")
	}
	_, err := f.db.TxByID(f.ctx, 1<<62)
	refused(err, "tx not found")
	_, err = f.db.TxByID(f.ctx, 0)
	refused(err, "illegal arguments")
}

func counts(f *flow) {
	f.operations()
	// A deleted key counts.
	ok(f.db.Delete(f.ctx, &schema.DeleteKeysRequest{Keys: [][]byte{f.key("free")}}))
	same(ok(f.db.Count(f.ctx, f.key(""))).Count, 4, "Count")
	same(ok(f.db.Count(f.ctx, f.key("f"))).Count, 2, "Count of a shorter list")
	same(ok(f.db.CountAll(f.ctx)).Count >= 4, true, "CountAll")
}

func sized(content []byte) *stream.ValueSize {
	return &stream.ValueSize{Content: bytes.NewReader(content), Size: len(content)}
}

func streams(f *flow) {
	var sum int
	for number, size := range []int{1, 1000, 65527, 65528, 65529, 1 << 20} {
		key, content := f.key(fmt.Sprintf("%08d", size)), make([]byte, size)
		for n := range content {
			content[n] = byte(rand.Int())
		}
		pairs := []*stream.KeyValue{
			{Key: sized(key), Value: sized(content)},
			{Key: sized(append(key, " again"...)), Value: sized(content)},
		}
		set := f.db.StreamSet
		if number%2 == 1 {
			set = f.db.StreamVerifiedSet
		}
		header := ok(set(f.ctx, pairs))
		same(header.Nentries, 2, "entries of a stream")
		found := ok(f.db.StreamGet(f.ctx, &schema.KeyRequest{Key: key}))
		same(bytes.Equal(found.Value, content), true, "StreamGet")
		if number%2 == 1 {
			// The SDK leaves it to its user to name the transaction of the state that it holds: here, what was just verified.
			request := &schema.VerifiableGetRequest{KeyRequest: &schema.KeyRequest{Key: key}, ProveSinceTx: header.Id}
			found = ok(f.db.StreamVerifiedGet(f.ctx, request))
			same(bytes.Equal(found.Value, content), true, "StreamVerifiedGet")
		}
		same(value(f.db.VerifiedGet(f.ctx, key)) == string(content), true, "VerifiedGet of what was streamed")
		sum += 2 * size
	}
	scanned := ok(f.db.StreamScan(f.ctx, &schema.ScanRequest{Prefix: f.key("")}))
	for _, entry := range scanned.Entries {
		sum -= len(entry.Value)
	}
	same(len(scanned.Entries), 12, "StreamScan")
	same(sum, 0, "bytes of StreamScan")
	again := f.key("again")
	ok(f.db.Set(f.ctx, again, []byte("1")))
	ok(f.db.Set(f.ctx, again, []byte("2")))
	history := &schema.HistoryRequest{Key: again, Desc: true}
	same(values(ok(f.db.StreamHistory(f.ctx, history))), "2 1", "StreamHistory")
	_, err := f.db.StreamGet(f.ctx, &schema.KeyRequest{Key: f.key("absent")})
	refused(err, "tbtree: key not found")
	absent := &schema.VerifiableGetRequest{KeyRequest: &schema.KeyRequest{Key: f.key("absent")}}
	_, err = f.db.StreamVerifiedGet(f.ctx, absent)
	refused(err, "tbtree: key not found")
}

func streamsOfOperations(f *flow) {
	first, second, long := f.key("first"), f.key("second"), strings.Repeat("1", 70_000)
	op := func(key []byte, value string) *stream.Op {
		pair := &stream.KeyValue{Key: sized(key), Value: sized([]byte(value))}
		return &stream.Op{Operation: &stream.Op_KeyValue{KeyValue: pair}}
	}
	member := func(score float64, key []byte) *stream.Op {
		return &stream.Op{Operation: &stream.Op_ZAdd{ZAdd: &schema.ZAddRequest{Set: f.key(""), Score: score, Key: key}}}
	}
	header := ok(f.db.StreamExecAll(f.ctx, &stream.ExecAllRequest{Operations: []*stream.Op{
		op(first, long), op(second, "2"), member(2, first), member(1, second),
	}}))
	same(header.Nentries, 4, "entries of StreamExecAll")
	found := ok(f.db.StreamZScan(f.ctx, &schema.ZScanRequest{Set: f.key("")}))
	same(len(found.Entries), 2, "StreamZScan")
	for n, expected := range []string{"2", long} {
		entry := found.Entries[n]
		same(entry.Score == float64(n+1) && string(entry.Entry.Value) == expected, true, "StreamZScan")
	}
}

func exports(f *flow) {
	id := f.operations().Id
	var whole []byte
	var last uint64
	for _, chunk := range f.export(id) {
		whole = append(whole, chunk.Content...)
		if state, said := chunk.Metadata["committed-txid-bin"]; said {
			must(stream.NumberFromBytes(state, &last))
		}
	}
	same(last >= id, true, "the last transaction that ExportTx tells")
	same(bytes.Contains(whole, f.key("second")), true, "ExportTx")
	both := ok(f.db.StreamExportTx(f.ctx))
	for range 2 {
		must(both.Send(&schema.ExportTxRequest{Tx: id}))
		var content []byte
		for len(content) < len(whole) {
			content = append(content, ok(both.Recv()).Content...)
		}
		same(bytes.Equal(content, whole), true, "StreamExportTx")
	}
	must(both.CloseSend())
	_, err := both.Recv()
	refused(err, "EOF")
	absent := ok(f.db.ExportTx(f.ctx, &schema.ExportTxRequest{Tx: 1 << 62}))
	_, err = absent.Recv()
	refused(err, "no new transactions")
}
