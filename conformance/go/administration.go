package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/codenotary/immudb/pkg/api/schema"
	"github.com/codenotary/immudb/pkg/client"
	"github.com/codenotary/immudb/pkg/client/tokenservice"
	"google.golang.org/protobuf/types/known/emptypb"
)

func users(f *flow) {
	name, key := "g"+f.Tag, f.key("key")
	ok(f.db.Set(f.ctx, key, []byte("value")))
	must(f.db.CreateUser(f.ctx, []byte(name), []byte("first"), 1, f.Database))
	refused(f.db.CreateUser(f.ctx, []byte(name), []byte("first"), 1, f.Database), "user already exists")
	var listed string
	for _, user := range ok(f.db.ListUsers(f.ctx)).Users {
		if string(user.User) == name {
			listed = fmt.Sprint(user.Active, user.Createdby, user.Permissions[0].Database, user.Permissions[0].Permission)
		}
	}
	same(listed, fmt.Sprint(true, f.Username, f.Database, 1), "ListUsers")
	reader := f.open(f.ctx, f.Endpoint, name, "first", f.Database)
	same(value(reader.VerifiedGet(f.ctx, key)), "value", "VerifiedGet of a reader")
	_, err := reader.Set(f.ctx, key, nil)
	refused(err, "permission denied")
	_, err = reader.GetAll(f.ctx, [][]byte{key})
	refused(err, "permission denied")
	// Whoever is changed has to log in again.
	must(f.db.ChangePermission(f.ctx, schema.PermissionAction_GRANT, name, f.Database, 2))
	_, err = reader.Get(f.ctx, key)
	refused(err, "session not found")
	writer := f.open(f.ctx, f.Endpoint, name, "first", f.Database)
	ok(writer.VerifiedSet(f.ctx, key, []byte("allowed")))
	must(f.db.ChangePassword(f.ctx, []byte(name), nil, []byte("second")))
	enter := func(password string) error {
		other := client.NewClient().WithOptions(f.options(f.Endpoint)).WithLogger(quiet{})
		err := other.OpenSession(f.ctx, []byte(name), []byte(password), f.Database)
		if err == nil {
			must(other.CloseSession(f.ctx))
		}
		return err
	}
	refused(enter("first"), "invalid user name or password")
	must(enter("second"))
	must(f.db.SetActiveUser(f.ctx, &schema.SetActiveUserRequest{Active: false, Username: name}))
	refused(enter("second"), "user is not active")
	must(f.db.SetActiveUser(f.ctx, &schema.SetActiveUserRequest{Active: true, Username: name}))
	must(f.db.ChangePermission(f.ctx, schema.PermissionAction_REVOKE, name, f.Database, 2))
	refused(enter("second"), "Logged in user does not have permission on this database")
}

func administration(f *flow) {
	name := "g" + f.Tag
	uint32s := func(value uint32) *schema.NullableUint32 { return &schema.NullableUint32{Value: value} }
	created := ok(f.db.CreateDatabaseV2(f.ctx, name, &schema.DatabaseNullableSettings{MaxKeyLen: uint32s(32)}))
	same(fmt.Sprint(created.Name, created.Settings.MaxKeyLen.GetValue()), name+"32", "CreateDatabaseV2")
	_, err := f.db.CreateDatabaseV2(f.ctx, name, nil)
	refused(err, "database already exists")
	frequency := &schema.DatabaseNullableSettings{SyncFrequency: &schema.NullableMilliseconds{Value: 30}}
	changed := ok(f.db.UpdateDatabaseV2(f.ctx, name, frequency))
	same(changed.Settings.SyncFrequency.GetValue(), 30, "UpdateDatabaseV2")
	_, err = f.db.UpdateDatabaseV2(f.ctx, name, &schema.DatabaseNullableSettings{MaxKeyLen: uint32s(31)})
	refused(err, "rpc error: code = InvalidArgument desc = illegal arguments: max key length can not be changed after "+
		"database creation ('"+name+"')")
	var listed bool
	for _, database := range ok(f.db.DatabaseListV2(f.ctx)).Databases {
		listed = listed || database.Name == name && database.Loaded && database.Settings.MaxKeyLen.GetValue() == 32
	}
	same(listed, true, "DatabaseListV2")
	same(ok(f.db.UseDatabase(f.ctx, &schema.Database{DatabaseName: name})).Token != "", true, "the token of UseDatabase")
	same(ok(f.db.GetDatabaseSettingsV2(f.ctx)).Settings.MaxKeyLen.GetValue(), 32, "GetDatabaseSettingsV2")
	// The first proof is of an empty database.
	same(ok(f.db.VerifiedSet(f.ctx, bytes.Repeat([]byte("k"), 31), []byte("v"))).Id, 1, "the first transaction")
	same(value(f.db.VerifiedGet(f.ctx, bytes.Repeat([]byte("k"), 31))), "v", "VerifiedGet of the first transaction")
	_, err = f.db.Set(f.ctx, bytes.Repeat([]byte("k"), 32), nil)
	refused(err, "max key length exceeded")
	same(ok(f.db.FlushIndex(f.ctx, 10, true)).Database, name, "FlushIndex")
	for _, percentage := range []float32{101, -1} {
		_, err = f.db.FlushIndex(f.ctx, percentage, true)
		refused(err, "tbtree: illegal arguments: invalid cleanupPercentage")
	}
	if err = f.db.CompactIndex(f.ctx, &emptypb.Empty{}); err != nil {
		refused(err, "tbtree: compaction threshold not yet reached")
	}
	_, err = f.db.UseDatabase(f.ctx, &schema.Database{DatabaseName: "absent" + f.Tag})
	refused(err, "'absent"+f.Tag+"' does not exist")
	same(ok(f.db.CurrentState(f.ctx)).Db, name, "the database that stays selected")
}

// deprecatedCalls are those of older programs.
func deprecatedCalls(f *flow) {
	name := "h" + f.Tag
	must(f.db.CreateDatabase(f.ctx, &schema.DatabaseSettings{DatabaseName: name}))
	var listed bool
	for _, database := range ok(f.db.DatabaseList(f.ctx)).Databases {
		listed = listed || database.DatabaseName == name
	}
	same(listed, true, "DatabaseList")
	ok(f.db.UseDatabase(f.ctx, &schema.Database{DatabaseName: name}))
	same(ok(f.db.GetDatabaseSettings(f.ctx)).DatabaseName, name, "GetDatabaseSettings")
	must(f.db.UpdateDatabase(f.ctx, &schema.DatabaseSettings{DatabaseName: name}))
	refused(f.db.UpdateAuthConfig(f.ctx, 0), "operation not supported")
	refused(f.db.UpdateMTLSConfig(f.ctx, false), "operation not supported")
}

func server(f *flow) {
	// A read at this node shows it the write, which it may have only passed on.
	ok(f.db.Set(f.ctx, f.key("key"), nil))
	ok(f.db.Get(f.ctx, f.key("key")))
	info := ok(f.db.ServerInfo(f.ctx, &schema.ServerInfoRequest{}))
	same(regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(info.Version), true, "the version "+info.Version)
	same(info.StartedAt > 1_700_000_000 && info.NumDatabases > 0 && info.NumTransactions > 0, true, "ServerInfo")
	same(ok(f.db.Health(f.ctx)).LastRequestCompletedAt > 1_700_000_000_000, true, "Health")
	must(f.db.HealthCheck(f.ctx))
	same(ok(f.db.CurrentState(f.ctx)).Db, f.Database, "CurrentState")
}

func sessions(f *flow) {
	same(len(f.db.GetSessionID()) > 0, true, "a session")
	other := f.open(f.ctx, f.Endpoint, f.Username, f.Password, f.Database)
	ok(other.VerifiedSet(f.ctx, f.key("key"), []byte("value")))
	must(other.CloseSession(f.ctx))
	_, err := other.Get(f.ctx, f.key("key"))
	same(err.Error(), client.ErrNotConnected.Error(), "a call after CloseSession")
	same(value(f.db.VerifiedGet(f.ctx, f.key("key"))), "value", "VerifiedGet of another session")
	wrongly := client.NewClient().WithOptions(f.options(f.Endpoint)).WithLogger(quiet{})
	refused(wrongly.OpenSession(f.ctx, []byte(f.Username), []byte("wrong"), f.Database), "invalid user name or password")
	refused(wrongly.OpenSession(f.ctx, []byte(f.Username), []byte(f.Password), "absent"), "database does not exist")
}

// tokens are the login of older programs.
func tokens(f *flow) {
	options := f.options(f.Endpoint)
	old := ok(client.NewImmuClient(options)).WithTokenService(tokenservice.NewInmemoryTokenService()).WithLogger(quiet{})
	defer func() { _ = old.Disconnect() }()
	_, err := old.Login(f.ctx, []byte(f.Username), []byte("wrong"))
	refused(err, "invalid user name or password")
	ok(old.Login(f.ctx, []byte(f.Username), []byte(f.Password)))
	ok(old.UseDatabase(f.ctx, &schema.Database{DatabaseName: f.Database}))
	ok(old.VerifiedSet(f.ctx, f.key("key"), []byte("value")))
	same(value(old.VerifiedGet(f.ctx, f.key("key"))), "value", "VerifiedGet with a token")
	same(value(f.db.VerifiedGet(f.ctx, f.key("key"))), "value", "VerifiedGet with a session")
}

// oneStateForAllNodes goes from node to node with one folder of states, as a program behind one address of many nodes would.
func oneStateForAllNodes(f *flow) {
	for n, endpoint := range f.Endpoints {
		at := f.open(f.ctx, endpoint, f.Username, f.Password, f.Database)
		ok(at.VerifiedSet(f.ctx, f.key(fmt.Sprint(n)), fmt.Append(nil, n)))
		for before := range n + 1 {
			same(value(at.VerifiedGet(f.ctx, f.key(fmt.Sprint(before)))), fmt.Sprint(before), "VerifiedGet on another node")
		}
		must(at.CloseSession(f.ctx))
	}
	// The SDK keeps a state per server and an identity per address; all nodes are one server.
	var servers []string
	for _, entry := range ok(os.ReadDir(f.State)) {
		if strings.HasPrefix(entry.Name(), ".state-") {
			servers = append(servers, entry.Name())
		}
	}
	same(len(servers), 1, "servers that are pinned: "+strings.Join(servers, " "))
	identities := ok(filepath.Glob(filepath.Join(f.State, ".identity-*")))
	same(len(identities) >= len(f.Endpoints), true, "identities that are pinned: "+strings.Join(identities, " "))
}

// lifecycle closes, opens, and removes a database, and has what is old forgotten.
func lifecycle(f *flow) {
	name, key := "l"+f.Tag, []byte("key")
	ok(f.db.CreateDatabaseV2(f.ctx, name, nil))
	other := f.open(f.ctx, f.Endpoint, f.Username, f.Password, name)
	for n := range 3 {
		ok(other.VerifiedSet(f.ctx, key, fmt.Append(nil, n)))
	}
	refused(f.db.TruncateDatabase(f.ctx, name, 48*time.Hour), "retention period has not been reached")
	_, err := f.db.LoadDatabase(f.ctx, &schema.LoadDatabaseRequest{Database: name})
	refused(err, "database already loaded")
	_, err = f.db.DeleteDatabase(f.ctx, &schema.DeleteDatabaseRequest{Database: name})
	refused(err, "cannot delete an open database")
	same(ok(f.db.UnloadDatabase(f.ctx, &schema.UnloadDatabaseRequest{Database: name})).Database, name, "UnloadDatabase")
	loaded := func() (found string) {
		for _, database := range ok(f.db.DatabaseListV2(f.ctx)).Databases {
			if database.Name == name {
				found = fmt.Sprint(database.Loaded)
			}
		}
		return
	}
	same(loaded(), "false", "an unloaded database in the list")
	same(ok(f.db.LoadDatabase(f.ctx, &schema.LoadDatabaseRequest{Database: name})).Database, name, "LoadDatabase")
	same(loaded(), "true", "a loaded database in the list")
	again := f.open(f.ctx, f.Endpoint, f.Username, f.Password, name)
	same(value(again.VerifiedGet(f.ctx, key)), "2", "VerifiedGet after it was loaded")
	same(value(again.VerifiedGetAtRevision(f.ctx, key, 1)), "0", "VerifiedGetAtRevision after it was loaded")
	ok(f.db.UnloadDatabase(f.ctx, &schema.UnloadDatabaseRequest{Database: name}))
	ok(f.db.DeleteDatabase(f.ctx, &schema.DeleteDatabaseRequest{Database: name}))
	same(loaded(), "", "a deleted database in the list")
	gone := client.NewClient().WithOptions(f.options(f.Endpoint)).WithLogger(quiet{})
	refused(gone.OpenSession(f.ctx, []byte(f.Username), []byte(f.Password), name), "database does not exist")
}
