// The flows of the official Go SDK (package client of github.com/codenotary/immudb, nothing of it is changed).
// conformance/run.py says which one, and judges.
//
// Each flow is a few calls as a user would make them, with everything that the SDK verifies by itself, in a key space of its
// own. Every flow opens a session of its own on the node that it was told, while the folder of states is one for all flows and
// nodes: a node with another history, another identity or less than was seen before would be found out by the SDK.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/codenotary/immudb/pkg/client"
	"google.golang.org/grpc/codes"
)

// Longer than what the server takes for a call that cannot be done; a flow is about a dozen of them.
const flowTimeout = 120 * time.Second

// asked is one request of run.py.
type asked struct {
	Flow      string   `json:"flow"`
	Endpoint  string   `json:"endpoint"`
	Endpoints []string `json:"endpoints"`
	Space     string   `json:"space"`
	Tag       string   `json:"tag"`
	Username  string   `json:"username"`
	Password  string   `json:"password"`
	Database  string   `json:"database"`
	State     string   `json:"state"`
	Key       string   `json:"key"`
	OtherKey  string   `json:"other_key"`
}

type answer struct {
	Result string `json:"result"`
	Code   string `json:"code,omitempty"`
	Text   string `json:"text,omitempty"`
	Where  string `json:"where,omitempty"`
	// Expected is the text that the refusal should have had.
	Expected string `json:"expected,omitempty"`
}

// wrong is an answer that no server should give.
type wrong struct{ text string }

func (w wrong) Error() string { return w.text }

// otherwise is a refusal that should have had another text, unless there was no answer at all: run.py decides.
type otherwise struct {
	error
	expected string
}

// flow is what a flow works with.
type flow struct {
	asked
	ctx context.Context
	db  client.ImmuClient
}

func (f *flow) key(name string) []byte { return []byte(f.Space + name) }

// must ends the flow with the error of a call.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// ok gives the answer of a call or ends the flow with its error.
func ok[T any](found T, err error) T {
	must(err)
	return found
}

// same ends the flow as wrong unless found is what was expected.
func same[T comparable](found, expected T, what string) {
	if found != expected {
		panic(wrong{fmt.Sprintf("%s: %#v instead of %#v", what, found, expected)})
	}
}

// refused ends the flow as wrong unless the call was refused with exactly this text.
func refused(err error, expected string) {
	if err == nil {
		panic(wrong{"not refused: " + expected})
	}
	if _, text := explained(err); text != expected {
		panic(otherwise{err, expected})
	}
}

// where names the line of the flow that is being given up, to be called while it is.
func where() string {
	callers := make([]uintptr, 64)
	frames := runtime.CallersFrames(callers[:runtime.Callers(1, callers)])
	for {
		frame, more := frames.Next()
		if file := filepath.Base(frame.File); strings.HasPrefix(frame.Function, "main.") && file != "main.go" {
			return fmt.Sprintf("%s:%d", file, frame.Line)
		}
		if !more {
			return ""
		}
	}
}

// options connect to a node, with the state in the folder that all nodes share.
func (a asked) options(endpoint string) *client.Options {
	host, port := ok2(net.SplitHostPort(endpoint))
	options := client.DefaultOptions().WithAddress(host).WithPort(ok(strconv.Atoi(port))).WithDir(a.State)
	return options.WithDialOptions(listening).WithServerSigningPubKey(a.Key)
}

func ok2[A, B any](a A, b B, err error) (A, B) {
	must(err)
	return a, b
}

// open makes a session on a node.
func (a asked) open(ctx context.Context, endpoint, username, password, database string) client.ImmuClient {
	db := client.NewClient().WithOptions(a.options(endpoint)).WithLogger(quiet{})
	must(db.OpenSession(ctx, []byte(username), []byte(password), database))
	return db
}

// run answers what became of a flow.
func run(request asked) (result answer) {
	ctx, cancel := context.WithTimeout(context.Background(), flowTimeout)
	defer cancel()
	defer func() {
		problem := recover()
		if problem == nil {
			return
		}
		defer func() { result.Where = where() }()
		switch problem := problem.(type) {
		case wrong:
			result = answer{Result: "wrong", Text: problem.text}
		case otherwise:
			code, text := explained(problem.error)
			result = answer{Result: "error", Code: names[code], Text: text, Expected: problem.expected}
		case error:
			code, text := explained(problem)
			result = answer{Result: "error", Code: names[code], Text: text}
			if _, is := problem.(runtime.Error); is {
				result = answer{Result: "wrong", Text: text}
			}
		default:
			panic(problem)
		}
	}()
	heard.forget()
	function, known := flows[request.Flow]
	if !known {
		return answer{Result: "wrong", Text: "no such flow"}
	}
	db := request.open(ctx, request.Endpoint, request.Username, request.Password, request.Database)
	// A session that cannot be closed any more is of a dead node; whether a live one can be is a flow of its own.
	defer func() { _ = db.CloseSession(ctx) }()
	function(&flow{request, ctx, db})
	return answer{Result: "ok"}
}

// names of the codes as run.py knows them.
var names = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

var flows = map[string]func(*flow){
	"values_and_history":      valuesAndHistory,
	"signatures":              signatures,
	"many_at_once":            manyAtOnce,
	"preconditions":           preconditions,
	"expiry":                  expiry,
	"references":              references,
	"sorted_sets":             sortedSets,
	"many_operations":         manyOperations,
	"transactions":            transactions,
	"counts":                  counts,
	"streams":                 streams,
	"streams_of_operations":   streamsOfOperations,
	"exports":                 exports,
	"encrypted":               encrypted,
	"replication":             replication,
	"users":                   users,
	"administration":          administration,
	"lifecycle":               lifecycle,
	"deprecated_calls":        deprecatedCalls,
	"server":                  server,
	"sessions":                sessions,
	"tokens":                  tokens,
	"one_state_for_all_nodes": oneStateForAllNodes,
}

// quiet keeps the SDK's log off, whose lines say nothing that is judged.
type quiet struct{}

func (quiet) Errorf(string, ...interface{})   {}
func (quiet) Warningf(string, ...interface{}) {}
func (quiet) Infof(string, ...interface{})    {}
func (quiet) Debugf(string, ...interface{})   {}
func (quiet) Close() error                    { return nil }

func main() {
	sdk := "an unknown SDK"
	if build, known := debug.ReadBuildInfo(); known {
		for _, module := range build.Deps {
			if module.Path == "github.com/codenotary/immudb" {
				sdk = module.Path + " " + module.Version
			}
		}
	}
	list := make([]string, 0, len(flows))
	for name := range flows {
		// Without a program there is no node to start.
		if name != "encrypted" || os.Getenv(nodeProgram) != "" {
			list = append(list, name)
		}
	}
	out := json.NewEncoder(os.Stdout)
	must(out.Encode(map[string]any{"flows": list, "sdk": sdk}))
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var request asked
		must(json.Unmarshal(lines.Bytes(), &request))
		must(out.Encode(run(request)))
	}
	must(lines.Err())
}
