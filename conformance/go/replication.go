package main

import (
	"bytes"
	"errors"
	"io"
	"time"

	"github.com/codenotary/immudb/pkg/api/schema"
)

// use selects a database in the session of the flow.
func (f *flow) use(name string) {
	ok(f.db.UseDatabase(f.ctx, &schema.Database{DatabaseName: name}))
}

// export gives the chunks of a transaction.
func (f *flow) export(id uint64) (chunks []*schema.Chunk) {
	exported := ok(f.db.ExportTx(f.ctx, &schema.ExportTxRequest{Tx: id}))
	for {
		chunk, err := exported.Recv()
		if errors.Is(err, io.EOF) {
			return chunks
		}
		chunks = append(chunks, ok(chunk, err))
	}
}

// replicate sends chunks of an exported transaction on.
func (f *flow) replicate(chunks []*schema.Chunk) (*schema.TxHeader, error) {
	stream := ok(f.db.ReplicateTx(f.ctx))
	for _, chunk := range chunks {
		// What went wrong is said by the answer.
		if err := stream.Send(chunk); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}

// replication copies one database into another, transaction by transaction, which then goes on by itself.
func replication(f *flow) {
	source, replica := "s"+f.Tag, "r"+f.Tag
	mode := func(on bool) *schema.DatabaseNullableSettings {
		replication := &schema.ReplicationNullableSettings{Replica: &schema.NullableBool{Value: on}}
		return &schema.DatabaseNullableSettings{ReplicationSettings: replication}
	}
	ok(f.db.CreateDatabaseV2(f.ctx, source, nil))
	ok(f.db.CreateDatabaseV2(f.ctx, replica, mode(true)))
	f.use(source)
	f.operations()
	ok(f.db.VerifiedSet(f.ctx, f.key("first"), bytes.Repeat([]byte("long"), 50_000)))
	last := ok(f.db.Delete(f.ctx, &schema.DeleteKeysRequest{Keys: [][]byte{f.key("second")}})).Id
	state := ok(f.db.CurrentState(f.ctx))
	same(state.TxId, last, "CurrentState of the source")
	var exported [][]*schema.Chunk
	for id := range last {
		exported = append(exported, f.export(id+1))
	}
	_, err := f.replicate(exported[0])
	refused(err, "database is NOT a replica")

	f.use(replica)
	_, err = f.db.Set(f.ctx, f.key("own"), nil)
	refused(err, "database is read-only because it's a replica")
	for n, chunks := range exported {
		same(ok(f.replicate(chunks)).Id, uint64(n+1), "the transaction of ReplicateTx")
	}
	_, err = f.replicate(exported[0])
	refused(err, "tx already committed")
	copied := ok(f.db.CurrentState(f.ctx))
	same(copied.TxId == state.TxId && bytes.Equal(copied.TxHash, state.TxHash), true, "the state of the replica is the source's")
	same(len(value(f.db.VerifiedGet(f.ctx, f.key("first")))), 200_000, "VerifiedGet in the replica")
	_, err = f.db.Get(f.ctx, f.key("second"))
	refused(err, "tbtree: key not found")

	f.use(source)
	next := f.export(ok(f.db.Set(f.ctx, f.key("next"), []byte("as it was"))).Id)
	f.use(replica)
	content := next[0].Content
	forged := bytes.Replace(content, []byte("as it was"), []byte("as it is."), 1)
	same(bytes.Equal(forged, content), false, "the value is in the export")
	_, err = f.replicate([]*schema.Chunk{{Content: forged, Metadata: next[0].Metadata}})
	refused(err, "illegal arguments: entries hash (Eh) differs")
	ok(f.replicate(next))
	same(value(f.db.VerifiedGet(f.ctx, f.key("next"))), "as it was", "VerifiedGet of what was copied last")

	ok(f.db.UpdateDatabaseV2(f.ctx, replica, mode(false)))
	// The change is in force a moment after it was acknowledged.
	var own *schema.TxHeader
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		own, err = f.db.VerifiedSet(f.ctx, f.key("own"), []byte("v"))
		if err == nil || time.Now().After(limit) {
			break
		}
		refused(err, "database is read-only because it's a replica")
	}
	same(ok(own, err).Id, last+2, "the first transaction of its own")
	same(value(f.db.VerifiedGetAt(f.ctx, f.key("next"), last+1)), "as it was", "VerifiedGet from before the cut-over")
}
