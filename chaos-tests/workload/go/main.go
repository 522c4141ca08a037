// One client of the official Go SDK (package client of github.com/codenotary/immudb, nothing of it is changed), told line by
// line what to do.
//
// The chaos program writes a line of JSON per call and judges; this program only makes the call and says what came of it:
// {"result": "ok", "tx"}, {"result": "found", "value"}, {"result": "refused" | "unknown" | "wrong", "text"}; after a verified call
// also what the SDK trusts from then on: {"trusted": {"tx", "alh"}}.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/codenotary/immudb/pkg/api/schema"
	"github.com/codenotary/immudb/pkg/client"
	"github.com/codenotary/immudb/pkg/client/cache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Longer than the server's own limit for a call, so that the server's answer is heard.
const callTimeout = 6 * time.Second

type asked struct {
	Op       string `json:"op"`
	Host     string `json:"host"`
	Port     int    `json:"port"`
	User     string `json:"user"`
	Password string `json:"password"`
	Database string `json:"database"`
	Key      string `json:"key"`
	Value    string `json:"value"`
	Verified bool   `json:"verified"`
}

type answer struct {
	Result  string   `json:"result"`
	Tx      uint64   `json:"tx,omitempty"`
	Value   *string  `json:"value,omitempty"`
	Text    string   `json:"text,omitempty"`
	Trusted *trusted `json:"trusted,omitempty"`
}

type trusted struct {
	Tx  uint64 `json:"tx"`
	Alh string `json:"alh"`
}

// heard is the status of the last call that failed, before the SDK made something else of it.
var heard struct {
	lock sync.Mutex
	code codes.Code
}

func hear(code codes.Code) {
	heard.lock.Lock()
	defer heard.lock.Unlock()
	heard.code = code
}

var listening = []grpc.DialOption{
	grpc.WithTransportCredentials(insecure.NewCredentials()),
	grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
		call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		err := call(ctx, method, request, reply, conn, options...)
		// The SDK asks in the background whether the session lives; that is no call of ours.
		if err != nil && !strings.HasSuffix(method, "/KeepAlive") {
			hear(status.Code(err))
		}
		return err
	}),
}

// surelyNot are the codes that promise that nothing was applied, whoever says them. Unavailable does not: connections say it as well.
var surelyNot = map[codes.Code]bool{
	codes.ResourceExhausted: true, codes.PermissionDenied: true, codes.InvalidArgument: true, codes.FailedPrecondition: true,
}

type worker struct {
	db       client.ImmuClient
	database string
}

// trusted is the state that the SDK keeps in its folder, which is the worker's own. All nodes are one server to it.
func (w *worker) trusted() (*trusted, error) {
	const prefix = ".state-"
	kept, err := filepath.Glob(prefix + "*")
	if err != nil || len(kept) != 1 {
		return nil, fmt.Errorf("the SDK keeps the states of %v: %w", kept, err)
	}
	states, server := cache.NewFileCache("."), strings.TrimPrefix(kept[0], prefix)
	if err := states.Lock(server); err != nil {
		return nil, err
	}
	state, err := states.Get(server, w.database)
	if unlocked := states.Unlock(); err == nil {
		err = unlocked
	}
	if err != nil {
		return nil, err
	}
	return &trusted{Tx: state.TxId, Alh: hex.EncodeToString(state.TxHash)}, nil
}

func (w *worker) open(ctx context.Context, request asked) (answer, error) {
	w.close()
	options := client.DefaultOptions().WithAddress(request.Host).WithPort(request.Port).WithDir(".").WithDialOptions(listening)
	db := client.NewClient().WithOptions(options).WithLogger(quiet{})
	if err := db.OpenSession(ctx, []byte(request.User), []byte(request.Password), request.Database); err != nil {
		return answer{}, err
	}
	w.db, w.database = db, request.Database
	return answer{Result: "ok"}, nil
}

// close ends the session; of a dead node it cannot be, which the node's guard does then.
func (w *worker) close() {
	if w.db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout/6)
	defer cancel()
	_ = w.db.CloseSession(ctx)
	w.db = nil
}

func (w *worker) set(ctx context.Context, request asked) (answer, error) {
	set := w.db.Set
	if request.Verified {
		set = w.db.VerifiedSet
	}
	header, err := set(ctx, []byte(request.Key), []byte(request.Value))
	if err != nil {
		return answer{}, err
	}
	return answer{Result: "ok", Tx: header.Id}, nil
}

func (w *worker) get(ctx context.Context, request asked) (answer, error) {
	var entry *schema.Entry
	var err error
	if request.Verified {
		entry, err = w.db.VerifiedGet(ctx, []byte(request.Key))
	} else {
		entry, err = w.db.Get(ctx, []byte(request.Key))
	}
	if err != nil && strings.HasSuffix(err.Error(), "key not found") {
		return answer{Result: "found"}, nil
	}
	if err != nil {
		return answer{}, err
	}
	value := string(entry.Value)
	return answer{Result: "found", Value: &value}, nil
}

// isWrong says whether an error is one of the SDK's own checks, which have texts and no codes.
func isWrong(err error) bool {
	for _, text := range []string{"corrupted", "state is older", "identity"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

func (w *worker) answer(request asked) answer {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	hear(codes.Unknown)
	call, known := map[string]func(context.Context, asked) (answer, error){"open": w.open, "set": w.set, "get": w.get}[request.Op]
	if !known {
		return answer{Result: "wrong", Text: "no such call: " + request.Op}
	}
	found, err := call(ctx, request)
	if err == nil && request.Verified {
		if found.Trusted, err = w.trusted(); err != nil {
			return answer{Result: "wrong", Text: err.Error()}
		}
	}
	if err == nil {
		return found
	}
	text := fmt.Sprintf("%s %s: %v", request.Op, request.Key, err)
	heard.lock.Lock()
	defer heard.lock.Unlock()
	switch {
	case isWrong(err):
		return answer{Result: "wrong", Text: text}
	case surelyNot[heard.code]:
		return answer{Result: "refused", Text: text}
	default:
		return answer{Result: "unknown", Text: text}
	}
}

// quiet keeps the SDK's log off, whose lines say nothing that is judged.
type quiet struct{}

func (quiet) Errorf(string, ...interface{})   {}
func (quiet) Warningf(string, ...interface{}) {}
func (quiet) Infof(string, ...interface{})    {}
func (quiet) Debugf(string, ...interface{})   {}
func (quiet) Close() error                    { return nil }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var w worker
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var request asked
		must(json.Unmarshal(lines.Bytes(), &request))
		must(out.Encode(w.answer(request)))
	}
	must(lines.Err())
	w.close()
}
