//! Every call of the services: who may make it, and whether it is a stream. The rows are those of the protocol sheet,
//! section 6, and our own; a test compares them with the descriptors of the services.

/// What a caller needs in a database, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Permission 1.
    Read,
    /// Permission 2.
    Write,
    /// Permission 254.
    Admin,
}

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Anybody.
    Anonymous,
    /// Any user, by session or token.
    Login,
    /// Any user with a session.
    Session,
    /// A user with this right in the selected database.
    Database(Right),
    /// A user whose rights depend on what is administrated: the call decides.
    Administration,
}

/// Whether one message goes each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Unary,
    /// A stream in at least one direction.
    Stream,
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Number of the call: its place in [`ALL`].
    pub index: usize,
    /// Full name of the service.
    pub service: &'static str,
    /// Name of the call.
    pub name: &'static str,
    /// The path on the wire.
    pub path: &'static str,
    /// Whether it is a stream.
    pub kind: Kind,
    /// Who may make it.
    pub need: Need,
    /// Whether it may be made in maintenance mode, and with `systemdb` selected.
    pub maintenance: bool,
}

macro_rules! methods {
    ($($constant:ident = $service:literal $name:literal $kind:ident $need:ident $(($right:expr))? $maintenance:ident;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($constant),* }

        $(
            #[doc = concat!("`", $service, "/", $name, "`")]
            pub const $constant: Method = Method {
                index: Place::$constant as usize,
                service: $service,
                name: $name,
                path: concat!("/", $service, "/", $name),
                kind: Kind::$kind,
                need: Need::$need $(($right))?,
                maintenance: methods!(@$maintenance),
            };
        )*

        /// Every call.
        pub static ALL: &[Method] = &[$($constant),*];
    };
    (@open) => { true };
    (@closed) => { false };
}

methods! {
    OPEN_SESSION = "immudb.schema.ImmuService" "OpenSession" Unary Anonymous closed;
    CLOSE_SESSION = "immudb.schema.ImmuService" "CloseSession" Unary Session closed;
    KEEP_ALIVE = "immudb.schema.ImmuService" "KeepAlive" Unary Session closed;
    LOGIN = "immudb.schema.ImmuService" "Login" Unary Anonymous closed;
    LOGOUT = "immudb.schema.ImmuService" "Logout" Unary Login closed;
    UPDATE_AUTH_CONFIG = "immudb.schema.ImmuService" "UpdateAuthConfig" Unary Anonymous closed;
    UPDATE_MTLS_CONFIG = "immudb.schema.ImmuService" "UpdateMTLSConfig" Unary Anonymous closed;
    SERVER_INFO = "immudb.schema.ImmuService" "ServerInfo" Unary Anonymous open;
    HEALTH = "immudb.schema.ImmuService" "Health" Unary Anonymous open;
    DATABASE_HEALTH = "immudb.schema.ImmuService" "DatabaseHealth" Unary Database(Right::Read) closed;
    CURRENT_STATE = "immudb.schema.ImmuService" "CurrentState" Unary Database(Right::Read) open;
    LIST_USERS = "immudb.schema.ImmuService" "ListUsers" Unary Login open;
    CREATE_USER = "immudb.schema.ImmuService" "CreateUser" Unary Administration closed;
    CHANGE_PASSWORD = "immudb.schema.ImmuService" "ChangePassword" Unary Administration closed;
    CHANGE_PERMISSION = "immudb.schema.ImmuService" "ChangePermission" Unary Administration closed;
    CHANGE_SQL_PRIVILEGES = "immudb.schema.ImmuService" "ChangeSQLPrivileges" Unary Administration closed;
    SET_ACTIVE_USER = "immudb.schema.ImmuService" "SetActiveUser" Unary Administration closed;
    SET = "immudb.schema.ImmuService" "Set" Unary Database(Right::Write) closed;
    GET = "immudb.schema.ImmuService" "Get" Unary Database(Right::Read) open;
    GET_ALL = "immudb.schema.ImmuService" "GetAll" Unary Database(Right::Write) open;
    DELETE = "immudb.schema.ImmuService" "Delete" Unary Database(Right::Write) closed;
    EXEC_ALL = "immudb.schema.ImmuService" "ExecAll" Unary Database(Right::Write) closed;
    SCAN = "immudb.schema.ImmuService" "Scan" Unary Database(Right::Read) open;
    HISTORY = "immudb.schema.ImmuService" "History" Unary Database(Right::Read) open;
    COUNT = "immudb.schema.ImmuService" "Count" Unary Database(Right::Read) open;
    COUNT_ALL = "immudb.schema.ImmuService" "CountAll" Unary Database(Right::Read) open;
    SET_REFERENCE = "immudb.schema.ImmuService" "SetReference" Unary Database(Right::Write) closed;
    ZADD = "immudb.schema.ImmuService" "ZAdd" Unary Database(Right::Write) closed;
    ZSCAN = "immudb.schema.ImmuService" "ZScan" Unary Database(Right::Read) open;
    TX_BY_ID = "immudb.schema.ImmuService" "TxById" Unary Database(Right::Read) open;
    TX_SCAN = "immudb.schema.ImmuService" "TxScan" Unary Database(Right::Read) open;
    VERIFIABLE_SET = "immudb.schema.ImmuService" "VerifiableSet" Unary Database(Right::Write) closed;
    VERIFIABLE_GET = "immudb.schema.ImmuService" "VerifiableGet" Unary Database(Right::Read) open;
    VERIFIABLE_TX_BY_ID = "immudb.schema.ImmuService" "VerifiableTxById" Unary Database(Right::Read) open;
    VERIFIABLE_SET_REFERENCE = "immudb.schema.ImmuService" "VerifiableSetReference" Unary Database(Right::Write) closed;
    VERIFIABLE_ZADD = "immudb.schema.ImmuService" "VerifiableZAdd" Unary Database(Right::Write) closed;
    VERIFIABLE_SQL_GET = "immudb.schema.ImmuService" "VerifiableSQLGet" Unary Database(Right::Read) open;
    NEW_TX = "immudb.schema.ImmuService" "NewTx" Unary Session closed;
    COMMIT = "immudb.schema.ImmuService" "Commit" Unary Session closed;
    ROLLBACK = "immudb.schema.ImmuService" "Rollback" Unary Session closed;
    TX_SQL_EXEC = "immudb.schema.ImmuService" "TxSQLExec" Unary Session closed;
    TX_SQL_QUERY = "immudb.schema.ImmuService" "TxSQLQuery" Stream Session closed;
    SQL_EXEC = "immudb.schema.ImmuService" "SQLExec" Unary Database(Right::Write) closed;
    SQL_QUERY = "immudb.schema.ImmuService" "SQLQuery" Stream Database(Right::Read) open;
    UNARY_SQL_QUERY = "immudb.schema.ImmuService" "UnarySQLQuery" Unary Database(Right::Read) open;
    LIST_TABLES = "immudb.schema.ImmuService" "ListTables" Unary Database(Right::Read) open;
    DESCRIBE_TABLE = "immudb.schema.ImmuService" "DescribeTable" Unary Database(Right::Read) open;
    STREAM_GET = "immudb.schema.ImmuService" "streamGet" Stream Database(Right::Read) open;
    STREAM_SET = "immudb.schema.ImmuService" "streamSet" Stream Database(Right::Write) closed;
    STREAM_VERIFIABLE_GET = "immudb.schema.ImmuService" "streamVerifiableGet" Stream Database(Right::Read) open;
    STREAM_VERIFIABLE_SET = "immudb.schema.ImmuService" "streamVerifiableSet" Stream Database(Right::Write) closed;
    STREAM_SCAN = "immudb.schema.ImmuService" "streamScan" Stream Database(Right::Read) open;
    STREAM_ZSCAN = "immudb.schema.ImmuService" "streamZScan" Stream Database(Right::Read) open;
    STREAM_HISTORY = "immudb.schema.ImmuService" "streamHistory" Stream Database(Right::Read) open;
    STREAM_EXEC_ALL = "immudb.schema.ImmuService" "streamExecAll" Stream Database(Right::Write) closed;
    EXPORT_TX = "immudb.schema.ImmuService" "exportTx" Stream Database(Right::Admin) open;
    STREAM_EXPORT_TX = "immudb.schema.ImmuService" "streamExportTx" Stream Database(Right::Admin) open;
    REPLICATE_TX = "immudb.schema.ImmuService" "replicateTx" Stream Database(Right::Admin) open;
    CREATE_DATABASE = "immudb.schema.ImmuService" "CreateDatabase" Unary Administration closed;
    CREATE_DATABASE_WITH = "immudb.schema.ImmuService" "CreateDatabaseWith" Unary Administration closed;
    CREATE_DATABASE_V2 = "immudb.schema.ImmuService" "CreateDatabaseV2" Unary Administration closed;
    LOAD_DATABASE = "immudb.schema.ImmuService" "LoadDatabase" Unary Administration closed;
    UNLOAD_DATABASE = "immudb.schema.ImmuService" "UnloadDatabase" Unary Administration closed;
    DELETE_DATABASE = "immudb.schema.ImmuService" "DeleteDatabase" Unary Administration closed;
    DATABASE_LIST = "immudb.schema.ImmuService" "DatabaseList" Unary Login closed;
    DATABASE_LIST_V2 = "immudb.schema.ImmuService" "DatabaseListV2" Unary Login closed;
    USE_DATABASE = "immudb.schema.ImmuService" "UseDatabase" Unary Login open;
    UPDATE_DATABASE = "immudb.schema.ImmuService" "UpdateDatabase" Unary Administration closed;
    UPDATE_DATABASE_V2 = "immudb.schema.ImmuService" "UpdateDatabaseV2" Unary Administration closed;
    GET_DATABASE_SETTINGS = "immudb.schema.ImmuService" "GetDatabaseSettings" Unary Database(Right::Read) closed;
    GET_DATABASE_SETTINGS_V2 = "immudb.schema.ImmuService" "GetDatabaseSettingsV2" Unary Database(Right::Read) closed;
    FLUSH_INDEX = "immudb.schema.ImmuService" "FlushIndex" Unary Database(Right::Admin) open;
    COMPACT_INDEX = "immudb.schema.ImmuService" "CompactIndex" Unary Database(Right::Admin) open;
    TRUNCATE_DATABASE = "immudb.schema.ImmuService" "TruncateDatabase" Unary Administration closed;
    CREATE_COLLECTION = "immudb.model.DocumentService" "CreateCollection" Unary Database(Right::Write) open;
    GET_COLLECTIONS = "immudb.model.DocumentService" "GetCollections" Unary Database(Right::Read) open;
    GET_COLLECTION = "immudb.model.DocumentService" "GetCollection" Unary Database(Right::Read) open;
    UPDATE_COLLECTION = "immudb.model.DocumentService" "UpdateCollection" Unary Database(Right::Write) open;
    DELETE_COLLECTION = "immudb.model.DocumentService" "DeleteCollection" Unary Database(Right::Write) open;
    ADD_FIELD = "immudb.model.DocumentService" "AddField" Unary Database(Right::Write) open;
    REMOVE_FIELD = "immudb.model.DocumentService" "RemoveField" Unary Database(Right::Write) open;
    CREATE_INDEX = "immudb.model.DocumentService" "CreateIndex" Unary Database(Right::Write) open;
    DELETE_INDEX = "immudb.model.DocumentService" "DeleteIndex" Unary Database(Right::Write) open;
    INSERT_DOCUMENTS = "immudb.model.DocumentService" "InsertDocuments" Unary Database(Right::Write) open;
    REPLACE_DOCUMENTS = "immudb.model.DocumentService" "ReplaceDocuments" Unary Database(Right::Write) open;
    DELETE_DOCUMENTS = "immudb.model.DocumentService" "DeleteDocuments" Unary Database(Right::Write) open;
    SEARCH_DOCUMENTS = "immudb.model.DocumentService" "SearchDocuments" Unary Database(Right::Read) open;
    COUNT_DOCUMENTS = "immudb.model.DocumentService" "CountDocuments" Unary Database(Right::Read) open;
    AUDIT_DOCUMENT = "immudb.model.DocumentService" "AuditDocument" Unary Database(Right::Read) open;
    PROOF_DOCUMENT = "immudb.model.DocumentService" "ProofDocument" Unary Database(Right::Read) open;
    AUTHORIZATION_OPEN_SESSION = "immudb.model.AuthorizationService" "OpenSession" Unary Anonymous closed;
    AUTHORIZATION_KEEP_ALIVE = "immudb.model.AuthorizationService" "KeepAlive" Unary Session closed;
    AUTHORIZATION_CLOSE_SESSION = "immudb.model.AuthorizationService" "CloseSession" Unary Session closed;
    TAKE_SERVER_UUID = "alhambra.cluster.ClusterService" "TakeServerUuid" Unary Administration closed;
}

/// Calls that change something without a right to write in a database.
const SESSION_WRITES: [Method; 5] = [CLOSE_SESSION, AUTHORIZATION_CLOSE_SESSION, LOGOUT, USE_DATABASE, REPLICATE_TX];

impl Method {
    /// Whether the call may change something.
    pub fn writes(&self) -> bool {
        match self.need {
            Need::Database(Right::Write) => *self != GET_ALL,
            Need::Administration => true,
            _ => SESSION_WRITES.contains(self),
        }
    }

    /// The call with this path; none for paths of other services.
    pub fn of_path(path: &str) -> Option<&'static Self> {
        static BY_PATH: std::sync::LazyLock<std::collections::HashMap<&'static str, &'static Method>> =
            std::sync::LazyLock::new(|| ALL.iter().map(|method| (method.path, method)).collect());
        BY_PATH.get(path).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;

    use super::*;

    #[test]
    fn the_table_has_exactly_the_calls_of_the_descriptors() {
        let set = prost_types::FileDescriptorSet::decode(alhambra_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut described = BTreeMap::new();
        for file in &set.file {
            for service in file.service.iter().filter(|_| file.package() != "alhambra.peer") {
                for method in &service.method {
                    let kind =
                        if method.client_streaming() || method.server_streaming() { Kind::Stream } else { Kind::Unary };
                    described.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()), kind);
                }
            }
        }
        let table: BTreeMap<String, Kind> = ALL.iter().map(|method| (method.path.to_owned(), method.kind)).collect();
        assert_eq!(table, described);
        assert_eq!(ALL.len(), 94);
        for (index, method) in ALL.iter().enumerate() {
            assert_eq!((method.index, Method::of_path(method.path)), (index, Some(method)));
        }
    }

    #[test]
    fn rights_that_surprise() {
        assert_eq!(GET.need, Need::Database(Right::Read));
        assert_eq!(GET_ALL.need, Need::Database(Right::Write), "GetAll needs to write");
        assert!(SET.writes() && DELETE.writes() && CREATE_DATABASE_V2.writes() && !GET_ALL.writes() && !GET.writes());
        assert!(SESSION_WRITES.iter().all(Method::writes) && CHANGE_PASSWORD.writes() && !KEEP_ALIVE.writes());
        assert_eq!(COUNT_ALL.need, SCAN.need);
        assert_eq!(STREAM_EXEC_ALL.need, STREAM_SET.need);
        assert_eq!(CREATE_DATABASE_V2.need, Need::Administration);
        assert_eq!((DATABASE_HEALTH.maintenance, CURRENT_STATE.maintenance), (false, true));
        assert!(Right::Read < Right::Write && Right::Write < Right::Admin);
    }
}
