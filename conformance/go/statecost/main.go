// What it costs the official Go SDK to keep what it trusts: its own file cache, one folder per client, and no server. After each
// verified read the SDK writes that file, so this is a bound for verified reads that no server can raise. The folders are made
// where temporary files go (TMPDIR).
package main

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/codenotary/immudb/pkg/api/schema"
	"github.com/codenotary/immudb/pkg/client/cache"
)

func main() {
	clients := flag.Int("clients", 10, "clients that work at the same time")
	seconds := flag.Int("seconds", 4, "seconds to run")
	flag.Parse()
	var wg sync.WaitGroup
	total := make([]int, *clients)
	end := time.Now().Add(time.Duration(*seconds) * time.Second)
	for i := 0; i < *clients; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dir, err := os.MkdirTemp("", "fc")
			if err != nil {
				panic(err)
			}
			defer os.RemoveAll(dir)
			c := cache.NewFileCache(dir)
			for time.Now().Before(end) {
				if err := c.Lock("uuid"); err != nil {
					panic(err)
				}
				if _, err := c.Get("uuid", "defaultdb"); err != nil && total[i] > 0 {
					panic(err)
				}
				s := &schema.ImmutableState{Db: "defaultdb", TxId: uint64(total[i] + 1), TxHash: make([]byte, 32)}
				if err := c.Set("uuid", "defaultdb", s); err != nil {
					panic(err)
				}
				if err := c.Unlock(); err != nil {
					panic(err)
				}
				total[i]++
			}
		}()
	}
	wg.Wait()
	n := 0
	for _, t := range total {
		n += t
	}
	fmt.Printf("%d clients: %d states kept per second\n", *clients, n / *seconds)
}
