package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/codenotary/immudb/pkg/api/schema"
	"github.com/codenotary/immudb/pkg/client"
)

// values joins what a list of entries holds, a deletion as "-".
func values(entries *schema.Entries) string {
	list := make([]string, len(entries.Entries))
	for i, entry := range entries.Entries {
		list[i] = string(entry.Value)
		if entry.Metadata.GetDeleted() {
			list[i] = "-"
		}
	}
	return strings.Join(list, " ")
}

func value(entry *schema.Entry, err error) string { return string(ok(entry, err).Value) }

func valuesAndHistory(f *flow) {
	key := f.key("value")
	var ids []uint64
	for n := range 3 {
		header := ok(f.db.VerifiedSet(f.ctx, key, fmt.Append(nil, n)))
		same(header.Nentries, 1, "entries of VerifiedSet")
		ids = append(ids, header.Id)
	}
	ids = append(ids, ok(f.db.Set(f.ctx, key, []byte("3"))).Id)
	same(value(f.db.Get(f.ctx, key)), "3", "Get")
	same(value(f.db.VerifiedGet(f.ctx, key)), "3", "VerifiedGet")
	same(value(f.db.Get(f.ctx, key, client.NoWait(true), client.AtRevision(1))), "0", "Get without waiting")
	same(value(f.db.GetSince(f.ctx, key, ids[3])), "3", "GetSince")
	same(value(f.db.VerifiedGetSince(f.ctx, key, ids[3])), "3", "VerifiedGetSince")
	for n, id := range ids {
		expected := fmt.Sprint(n)
		same(value(f.db.GetAt(f.ctx, key, id)), expected, "GetAt")
		same(value(f.db.VerifiedGetAt(f.ctx, key, id)), expected, "VerifiedGetAt")
		same(value(f.db.VerifiedGetAtRevision(f.ctx, key, int64(n+1))), expected, "VerifiedGetAtRevision")
		found := ok(f.db.GetAtRevision(f.ctx, key, int64(n-3)))
		same(fmt.Sprintln(string(found.Value), found.Revision, found.Tx), fmt.Sprintln(n, n+1, id), "GetAtRevision")
	}
	_, err := f.db.GetAtRevision(f.ctx, key, 5)
	refused(err, "invalid key revision number")
	ok(f.db.Delete(f.ctx, &schema.DeleteKeysRequest{Keys: [][]byte{key}}))
	_, err = f.db.Get(f.ctx, key)
	refused(err, "tbtree: key not found")
	_, err = f.db.VerifiedGet(f.ctx, key)
	refused(err, "tbtree: key not found")
	same(values(ok(f.db.History(f.ctx, &schema.HistoryRequest{Key: key}))), "0 1 2 3 -", "History")
	history := ok(f.db.History(f.ctx, &schema.HistoryRequest{Key: key, Offset: 1, Limit: 2, Desc: true}))
	same(values(history), "3 2", "History downward")
	_, err = f.db.History(f.ctx, &schema.HistoryRequest{Key: key, Offset: 5})
	refused(err, "tbtree: no more entries")
	_, err = f.db.Delete(f.ctx, &schema.DeleteKeysRequest{Keys: [][]byte{key}})
	refused(err, "tbtree: key not found")
	same(value(f.db.VerifiedGetAt(f.ctx, key, ok(f.db.VerifiedSet(f.ctx, key, nil)).Id)), "", "an empty value")
}

func manyAtOnce(f *flow) {
	request := &schema.SetRequest{}
	var keys [][]byte
	for n := range 100 {
		keys = append(keys, f.key(fmt.Sprintf("%03d", n)))
		request.KVs = append(request.KVs, &schema.KeyValue{Key: keys[n], Value: fmt.Appendf(nil, "v%d", n)})
	}
	header := ok(f.db.SetAll(f.ctx, request))
	same(header.Nentries, 100, "entries of SetAll")
	found := ok(f.db.GetAll(f.ctx, append([][]byte{f.key("absent")}, keys...)))
	same(len(found.Entries), 100, "GetAll leaves out what is absent")
	for n, entry := range found.Entries {
		same(string(entry.Key)+string(entry.Value), string(keys[n])+fmt.Sprint("v", n), "GetAll")
		same(entry.Tx, header.Id, "the transaction of GetAll")
	}
	scan := func(request *schema.ScanRequest) string {
		request.Prefix = f.key("")
		return values(ok(f.db.Scan(f.ctx, request)))
	}
	same(len(strings.Fields(scan(&schema.ScanRequest{}))), 100, "Scan")
	same(scan(&schema.ScanRequest{Limit: 3, Desc: true}), "v99 v98 v97", "Scan downward")
	same(scan(&schema.ScanRequest{Limit: 2, Offset: 5, SinceTx: header.Id}), "v5 v6", "Scan with an offset")
	same(scan(&schema.ScanRequest{SeekKey: keys[7], EndKey: keys[10]}), "v8 v9", "Scan between, both left out")
	between := &schema.ScanRequest{SeekKey: keys[7], EndKey: keys[9], InclusiveSeek: true, InclusiveEnd: true}
	same(scan(between), "v7 v8 v9", "Scan between, both included")
	same(value(f.db.VerifiedGet(f.ctx, keys[63])), "v63", "VerifiedGet of one of many")
	_, err := f.db.Scan(f.ctx, &schema.ScanRequest{Limit: 2501})
	refused(err, "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)")
	_, err = f.db.SetAll(f.ctx, &schema.SetRequest{KVs: []*schema.KeyValue{request.KVs[0], request.KVs[0]}})
	refused(err, "duplicated keys are not supported in single batch transaction")
	_, err = f.db.SetAll(f.ctx, &schema.SetRequest{})
	refused(err, "no entries provided")
	_, err = f.db.Set(f.ctx, bytes.Repeat([]byte("k"), 1024), nil)
	refused(err, "max key length exceeded")
}

func preconditions(f *flow) {
	key := f.key("key")
	set := func(value string, conditions ...*schema.Precondition) (*schema.TxHeader, error) {
		kv := &schema.KeyValue{Key: key, Value: []byte(value)}
		return f.db.SetAll(f.ctx, &schema.SetRequest{KVs: []*schema.KeyValue{kv}, Preconditions: conditions})
	}
	_, err := set("0", schema.PreconditionKeyMustExist(key))
	refused(err, "precondition failed: KeyMustExist")
	first := ok(set("1", schema.PreconditionKeyMustNotExist(key)))
	_, err = set("2", schema.PreconditionKeyMustNotExist(key))
	refused(err, "precondition failed: KeyMustNotExist")
	second := ok(set("2", schema.PreconditionKeyMustExist(key), schema.PreconditionKeyNotModifiedAfterTX(key, first.Id)))
	_, err = set("3", schema.PreconditionKeyNotModifiedAfterTX(key, first.Id))
	refused(err, "precondition failed: KeyNotModifiedAfterTxID")
	same(second.Id > first.Id, true, "ids grow")
	same(values(ok(f.db.History(f.ctx, &schema.HistoryRequest{Key: key}))), "1 2", "what was refused wrote nothing")
}

func expiry(f *flow) {
	past, future, hidden := f.key("past"), f.key("future"), f.key("hidden")
	ok(f.db.ExpirableSet(f.ctx, past, []byte("v"), time.Now().Add(-time.Hour)))
	later := time.Now().Add(time.Hour)
	ok(f.db.ExpirableSet(f.ctx, future, []byte("v"), later))
	_, err := f.db.Get(f.ctx, past)
	refused(err, "tbtree: key not found: expired entry")
	_, err = f.db.VerifiedGet(f.ctx, past)
	refused(err, "tbtree: key not found: expired entry")
	found := ok(f.db.VerifiedGet(f.ctx, future))
	same(found.Metadata.GetExpiration().GetExpiresAt(), later.Unix(), "when a value expires")
	expired := ok(f.db.History(f.ctx, &schema.HistoryRequest{Key: past})).Entries
	same(len(expired) == 1 && expired[0].Expired, true, "the history of an expired value")
	kv := &schema.KeyValue{Key: hidden, Value: []byte("h"), Metadata: &schema.KVMetadata{NonIndexable: true}}
	header := ok(f.db.SetAll(f.ctx, &schema.SetRequest{KVs: []*schema.KeyValue{kv}}))
	_, err = f.db.Get(f.ctx, hidden)
	refused(err, "tbtree: key not found")
	same(value(f.db.GetAt(f.ctx, hidden, header.Id)), "h", "GetAt of a value that is not indexed")
	same(value(f.db.VerifiedGetAt(f.ctx, hidden, header.Id)), "h", "VerifiedGetAt of a value that is not indexed")
	same(values(ok(f.db.Scan(f.ctx, &schema.ScanRequest{Prefix: f.key("")}))), "v", "Scan")
}

func references(f *flow) {
	target, free, bound := f.key("target"), f.key("free"), f.key("bound")
	old := ok(f.db.VerifiedSet(f.ctx, target, []byte("old")))
	ok(f.db.SetReference(f.ctx, free, target))
	ok(f.db.SetReferenceAt(f.ctx, bound, target, old.Id))
	ok(f.db.VerifiedSetReference(f.ctx, f.key("verified"), target))
	ok(f.db.VerifiedSetReferenceAt(f.ctx, f.key("verified, bound"), target, old.Id))
	ok(f.db.Set(f.ctx, target, []byte("new")))
	for name, expected := range map[string]string{"free": "new", "verified": "new", "bound": "old", "verified, bound": "old"} {
		found := ok(f.db.Get(f.ctx, f.key(name)))
		same(string(found.Value)+string(found.Key), expected+string(target), "Get through "+name)
		same(string(found.ReferencedBy.GetKey()), string(f.key(name)), "the name of "+name)
		same(value(f.db.VerifiedGet(f.ctx, f.key(name))), expected, "VerifiedGet through "+name)
	}
	_, err := f.db.SetReference(f.ctx, f.key("third"), free)
	refused(err, "referenced key cannot be a reference")
	_, err = f.db.SetReference(f.ctx, target, target)
	refused(err, "final key cannot be converted into a reference")
	_, err = f.db.VerifiedSetReference(f.ctx, f.key("fourth"), f.key("absent"))
	refused(err, "tbtree: key not found")
	_, err = f.db.SetReferenceAt(f.ctx, f.key("fifth"), target, 1<<62)
	refused(err, "tx not found")
}

func sortedSets(f *flow) {
	set := f.key("")
	var keys [][]byte
	for n := range 6 {
		keys = append(keys, f.key(fmt.Sprint(n)))
		ok(f.db.Set(f.ctx, keys[n], fmt.Append(nil, n)))
	}
	for n, score := range []float64{3, 1, 2, -1} {
		ok(f.db.ZAdd(f.ctx, set, score, keys[n]))
	}
	ok(f.db.VerifiedZAdd(f.ctx, set, 2.5, keys[4]))
	at := ok(f.db.Set(f.ctx, keys[5], []byte("bound"))).Id
	ok(f.db.ZAddAt(f.ctx, set, 0.5, keys[5], at))
	// The SDK forgets to say that it is bound, which every server refuses.
	_, err := f.db.VerifiedZAddAt(f.ctx, set, 0.25, keys[5], at)
	refused(err, "illegal arguments")
	ok(f.db.Set(f.ctx, keys[5], []byte("newer")))
	scores := func(request *schema.ZScanRequest) string {
		request.Set = set
		list := []any{}
		for _, entry := range ok(f.db.ZScan(f.ctx, request)).Entries {
			list = append(list, entry.Score, string(entry.Entry.Value))
		}
		return fmt.Sprint(list...)
	}
	all := fmt.Sprint(0.5, "bound", 1.0, "1", 2.0, "2", 2.5, "4", 3.0, "0", -1.0, "3")
	same(scores(&schema.ZScanRequest{}), all, "ZScan")
	between := &schema.ZScanRequest{MinScore: &schema.Score{Score: 2}, MaxScore: &schema.Score{Score: 2.5}}
	same(scores(between), fmt.Sprint(2.0, "2", 2.5, "4"), "ZScan between")
	down := &schema.ZScanRequest{Desc: true, MaxScore: &schema.Score{Score: 3}, Limit: 2}
	same(scores(down), fmt.Sprint(2.5, "4", 2.0, "2"), "ZScan downward")
	seek := &schema.ZScanRequest{SeekKey: keys[1], SeekScore: 1, InclusiveSeek: false, Limit: 1}
	same(scores(seek), fmt.Sprint(2.0, "2"), "ZScan after a member")
	_, err = f.db.ZAdd(f.ctx, set, 1, f.key("absent"))
	refused(err, "tbtree: key not found")
	_, err = f.db.ZScan(f.ctx, &schema.ZScanRequest{})
	refused(err, "illegal arguments")
}

// signatures are made by the key of the server, and a client that expects another one believes nothing.
func signatures(f *flow) {
	if f.Key == "" {
		return
	}
	ok(f.db.VerifiedSet(f.ctx, f.key("key"), []byte("value")))
	same(value(f.db.VerifiedGet(f.ctx, f.key("key"))), "value", "VerifiedGet with the key")
	// With the states of the one before, so that it is the verified calls that have something to refuse.
	a := f.asked
	a.Key = f.OtherKey
	other := client.NewClient().WithOptions(a.options(f.Endpoint)).WithLogger(quiet{})
	must(other.OpenSession(f.ctx, []byte(f.Username), []byte(f.Password), f.Database))
	_, err := other.VerifiedSet(f.ctx, f.key("other"), []byte("value"))
	disbelieved(err, "VerifiedSet")
	_, err = other.VerifiedGet(f.ctx, f.key("key"))
	disbelieved(err, "VerifiedGet")
	must(other.CloseSession(f.ctx))
}

// disbelieved ends the flow unless the call was refused for its signature.
func disbelieved(err error, what string) {
	if err == nil {
		panic(wrong{what + " with another key was believed"})
	}
	// The SDK's own words for a signature that is not of its key.
	refused(err, "key cannot be verified")
}
