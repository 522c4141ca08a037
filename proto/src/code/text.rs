//! The exact errors of the compatible faces: SDKs compare codes, texts and details, so none of them is ours to improve.
//!
//! Constants where the text is fixed, functions where it names something. "Unknown" as a gRPC code is what the original
//! answers for almost everything, a missing key included.

use tonic::{Code as Grpc, Status};

use super::{ImmuCode, WireError, coded, plain_text};

/// Declares the constants and the list of all of them, which the tests walk.
macro_rules! wire_errors {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: WireError = $value;)*

        /// Every error with a fixed text, with its constant's name.
        pub const ALL: &[(&str, WireError)] = &[$((stringify!($name), $name)),*];
    };
}

wire_errors! {
    // Arguments and limits.

    /// A wrong argument where the original says nothing more. With a suffix it is [`illegal_arguments`].
    ILLEGAL_ARGUMENTS = WireError::plain(Grpc::InvalidArgument, "illegal arguments");
    /// The client's state is beyond the last transaction. No details: Go compares the whole status.
    ILLEGAL_STATE = WireError::plain(Grpc::InvalidArgument, "illegal state");
    /// Get of an empty key.
    EMPTY_KEY = WireError::plain_text("illegal arguments: empty key");
    /// VerifiableGet without an inner request.
    EMPTY_REQUEST = WireError::plain_text("illegal arguments: empty request");
    /// Get with both atTx and sinceTx.
    SINCE_TX_WITH_AT_TX = WireError::plain_text("illegal arguments: SinceTx should not be specified when AtTx is used");
    /// Get with both atTx and atRevision.
    AT_REVISION_WITH_AT_TX =
        WireError::plain_text("illegal arguments: AtRevision should not be specified when AtTx is used");
    /// Get with a sinceTx beyond the last transaction.
    SINCE_TX_TOO_HIGH =
        WireError::plain_text("illegal arguments: SinceTx must not be greater than the current transaction ID");
    /// TxById asked to resolve SQL entries.
    SQL_RESOLUTION_UNSUPPORTED =
        WireError::plain_text("illegal arguments: sql entry resolution is not supported");
    /// One key twice in a Set.
    DUPLICATED_KEYS =
        WireError::plain(Grpc::InvalidArgument, "duplicated keys are not supported in single batch transaction");
    /// A write without entries.
    NO_ENTRIES = WireError::plain_text("no entries provided");
    /// A missing key inside a transaction.
    NULL_KEY = WireError::plain_text("null key");
    /// A key longer than the database allows, its prefix byte counted.
    MAX_KEY_LENGTH = WireError::plain_text("max key length exceeded");
    /// A value longer than the database allows, its prefix byte counted.
    MAX_VALUE_LENGTH = WireError::plain_text("max value length exceeded");
    /// More entries than a transaction may have.
    MAX_TX_ENTRIES = WireError::plain_text("max number of entries per tx exceeded");
    /// An operation without content in ExecAll.
    OPERATION_NOT_SET = WireError::plain(Grpc::InvalidArgument, "operation is not set");
    /// ExecAll without operations.
    EMPTY_SET = WireError::plain(Grpc::InvalidArgument, "empty set");
    /// ExecAll adds a key to a set twice.
    DUPLICATED_MEMBERS = WireError::plain(
        Grpc::InvalidArgument,
        "duplicated index inside zAdd insertions are not supported in single batch transaction"
    );
    /// A reference to a reference.
    REFERENCE_TO_REFERENCE = WireError::plain_text("referenced key cannot be a reference");
    /// A reference under a key that has a value.
    KEY_HAS_VALUE = WireError::plain_text("final key cannot be converted into a reference");
    /// ExecAll with noWait and a reference that is not bound to the transaction itself.
    NO_WAIT_UNBOUND = WireError::plain_text(
        "no wait operation must be self-contained: illegal arguments: can only set references to keys added within same \
         transaction, please use bound references with AtTx set to 0"
    );
    /// ExecAll with noWait and a reference to a key that it does not set.
    NO_WAIT_REFERENCE = WireError::plain_text(
        "no wait operation must be self-contained: illegal arguments: can not create a reference to a key that was not set in \
         the same transaction"
    );
    /// ExecAll with noWait and a member of a set whose key it does not set.
    NO_WAIT_MEMBER = WireError::plain_text(
        "no wait operation must be self-contained: illegal arguments: can not create a reference into a set for a key that \
         was not set in the same transaction"
    );
    /// Metadata in a database whose headers have version 0.
    METADATA_UNSUPPORTED = WireError::plain_text(
        "metadata is unsupported when in 1.1 compatibility mode, do not use metadata-related features such as \
         expiration and logical deletion"
    );

    // Keys and transactions.

    /// The key does not exist, or is deleted.
    KEY_NOT_FOUND = WireError::plain_text("tbtree: key not found");
    /// The key exists but has expired.
    EXPIRED_ENTRY = WireError::plain_text("tbtree: key not found: expired entry");
    /// A bound of a scan or a count that is longer than a key can be; a negative limit of History.
    TREE_ILLEGAL_ARGUMENTS = WireError::plain_text("tbtree: illegal arguments");
    /// History from an offset that equals the number of versions.
    NO_MORE_ENTRIES = WireError::plain_text("tbtree: no more entries");
    /// A transaction that does not exist.
    TX_NOT_FOUND = WireError::plain_text("tx not found");
    /// A revision that does not exist.
    INVALID_REVISION = WireError::plain_text("invalid key revision number");
    /// A reference that leads to a reference.
    RESOLUTION_LIMIT = WireError::plain_text("key resolution limit reached. It may be due to cyclic references");
    /// The transaction read what another one has changed.
    READ_CONFLICT = WireError::coded(ImmuCode::InFailedTransaction, "tx read conflict");
    /// A condition on an existing key failed.
    KEY_MUST_EXIST = WireError::coded(ImmuCode::IntegrityViolation, "precondition failed: KeyMustExist");
    /// A condition on a missing key failed.
    KEY_MUST_NOT_EXIST = WireError::coded(ImmuCode::IntegrityViolation, "precondition failed: KeyMustNotExist");
    /// A condition on an unmodified key failed.
    KEY_MODIFIED = WireError::coded(ImmuCode::IntegrityViolation, "precondition failed: KeyNotModifiedAfterTxID");
    /// A precondition without content.
    PRECONDITION_NULL = WireError::plain_text("invalid precondition: null");
    /// A precondition on an empty key.
    PRECONDITION_NULL_KEY = WireError::plain_text("invalid precondition: null key");
    /// A precondition on a too long key, in a Set or SetReference.
    PRECONDITION_KEY_LENGTH =
        WireError::plain_text("invalid precondition: invalid precondition: max key length exceeded");
    /// A precondition on a too long key, in an ExecAll.
    PRECONDITION_KEY_LENGTH_EXEC_ALL = WireError::plain_text("invalid precondition: max key length exceeded");
    /// A precondition with transaction 0, in a Set or SetReference.
    PRECONDITION_TX = WireError::plain_text("invalid precondition: invalid precondition: invalid transaction ID");
    /// A precondition with transaction 0, in an ExecAll.
    PRECONDITION_TX_EXEC_ALL = WireError::plain_text("invalid precondition: invalid transaction ID");
    /// More preconditions than a transaction may have entries.
    PRECONDITIONS_TOO_MANY = WireError::plain_text("invalid precondition: too many preconditions");

    // Streams.

    /// A streamed value that is longer than the database allows.
    STREAM_VALUE_TOO_LONG = WireError::caused(
        ImmuCode::DataException,
        "internal store max value length exceeded",
        "max value length exceeded"
    );
    /// Streamed values that are too long together.
    STREAM_VALUES_TOO_LONG = WireError::coded(ImmuCode::DataException, "max transaction values length exceeded");
    /// A stream without the message that has to come first.
    STREAM_EOF = WireError::plain_text("EOF");
    /// A first message that is shorter than its number.
    STREAM_UNEXPECTED_EOF = WireError::plain_text("unexpected EOF");

    /// A reference in a streamExecAll.
    STREAM_REFERENCE = WireError::coded(ImmuCode::UndefinedFunction, "reference operation is not implemented");
    /// A member of a sorted set that does not parse, in a streamExecAll.
    STREAM_MEMBER =
        WireError::plain(Grpc::Internal, "unable to reassemble ZAdd message on a streamExecAll");
    /// Export of a transaction that does not exist yet.
    NO_NEW_TRANSACTIONS = WireError::plain_text("no new transactions");
    /// Export to a replica that votes, by a server whose replicas do not.
    REPLICA_STATE_UNEXPECTED = WireError::plain_text("illegal state: replica state was NOT expected");

    /// replicateTx of a transaction that is there already.
    TX_ALREADY_COMMITTED = WireError::plain_text("tx already committed");
    /// replicateTx into a database that is written by users.
    NOT_REPLICA = WireError::plain_text("database is NOT a replica");
    /// replicateTx of another history.
    IMPORT_BL_ROOT =
        WireError::plain_text("illegal arguments: attempt to commit a tx with invalid blRoot");
    /// replicateTx of another history whose tree is the same.
    IMPORT_PREV_ALH =
        WireError::plain_text("illegal arguments: attempt to commit a tx with invalid prevAlh");
    /// replicateTx of a header whose tree is smaller than that of the header before, or too far behind.
    IMPORT_BL_TX_ID =
        WireError::plain_text("illegal arguments: attempt to commit a tx with invalid blTxID");
    /// replicateTx of changed content.
    IMPORT_EH = WireError::plain_text("illegal arguments: entries hash (Eh) differs");
    /// A transaction before the one to be replicated did not come in time.
    IMPORT_GAP = WireError::plain(
        Grpc::Cancelled,
        "the transactions before this one did not come by the deadline; surely not applied",
    );

    // Sessions and tokens.

    /// A unary call with a session id that is not known (any more).
    SESSION_NOT_FOUND = WireError::coded(ImmuCode::SessionNotFound, "session not found");
    /// A streaming call with such a session id.
    NO_SESSION_FOUND = WireError::coded(ImmuCode::InvalidParameter, "no session found");
    /// The session header is there but empty.
    NO_SESSION_ID = WireError::coded(ImmuCode::InvalidAuthorization, "no sessionID provided");
    /// Neither a session nor a token.
    NOT_LOGGED_IN = WireError::coded(ImmuCode::InvalidAuthorization, "not logged in");
    /// A call that needs a session, without one.
    NO_SESSION_AUTH_DATA = WireError::coded(ImmuCode::InvalidAuthorization, "no session auth data provided");
    /// A token that does not parse or whose key is gone; the cause says which.
    INVALID_TOKEN = WireError::coded(ImmuCode::InternalError, "invalid token");
    /// An expired token in a database call or UseDatabase.
    TOKEN_EXPIRED = WireError::plain(Grpc::PermissionDenied, "token has expired: token validation error");
    /// An expired token in a user call or Logout.
    TOKEN_EXPIRED_USER_CALL = WireError::plain_text("token has expired: token validation error");
    /// UseDatabase without a login.
    PLEASE_LOGIN = WireError::plain(Grpc::Unauthenticated, "Please login");
    /// DatabaseList and DatabaseListV2 without a login.
    PLEASE_LOGIN_LIST = WireError::plain_text("please login");
    /// The other database administration calls without a login.
    NO_USER_DATA = WireError::plain_text("could not get loggedin user data");
    /// A wrong user name or password; the cause says which.
    INVALID_CREDENTIALS = WireError::coded(ImmuCode::ServerRejected, "invalid user name or password");
    /// The user is deactivated.
    USER_NOT_ACTIVE = WireError::coded(ImmuCode::ServerRejected, "user is not active");
    /// OpenSession beyond the limit.
    MAX_SESSIONS = WireError::caused(
        ImmuCode::InternalError,
        "can not create new session: max sessions number reached",
        "can not create new session"
    );
    /// Authentication is off and the client is not local.
    LOCAL_ONLY = WireError::plain(
        Grpc::PermissionDenied,
        "server has authentication disabled: only local connections are accepted"
    );
    /// Logging in while authentication is off.
    AUTH_DISABLED = WireError::coded(
        ImmuCode::ProtocolViolation,
        "server is running with authentication disabled, please enable authentication to login"
    );
    /// Administration while authentication is off.
    AUTH_MUST_BE_ON = WireError::plain(Grpc::InvalidArgument, "authentication must be on");
    /// UseDatabase, lists and calls on users while authentication is off.
    ONLY_WITH_AUTH = WireError::plain_text("this command is available only with authentication on");
    /// A call without the token of UseDatabase in maintenance mode.
    SELECT_DATABASE_FIRST = WireError::plain_text("please select database first");
    /// The permission does not allow this method.
    PERMISSION_DENIED = WireError::coded(ImmuCode::InternalError, "permission denied");
    /// A method that is not on the list of maintenance mode.
    MAINTENANCE_MODE = WireError::plain(Grpc::InvalidArgument, "operation not allowed in maintenance mode");
    /// A method that always refuses.
    OPERATION_NOT_SUPPORTED = WireError::coded(ImmuCode::InternalError, "operation not supported");

    // Databases.

    /// A token that selects no database.
    NO_DATABASE_SELECTED = WireError::plain_text("please select a database first");
    /// The database does not exist; UseDatabase says [`database_not_found`].
    DATABASE_NOT_FOUND = WireError::plain_text("database does not exist");
    /// A database of this name exists.
    DATABASE_EXISTS = WireError::plain_text("database already exists");
    /// `defaultdb` or `systemdb` where they may not be named.
    DATABASE_RESERVED = WireError::coded(ImmuCode::InternalError, "database is reserved");
    /// FlushIndex with a share that is no percentage.
    CLEANUP_PERCENTAGE = WireError::plain_text("tbtree: illegal arguments: invalid cleanupPercentage");
    /// CompactIndex while there is nothing to merge.
    NOTHING_TO_COMPACT = WireError::plain_text("tbtree: compaction threshold not yet reached");
    /// A name that is empty or too long.
    DATABASE_NAME_LENGTH = WireError::plain_text("database name length outside of limits");
    /// A name with a character that is neither letter, digit, underscore nor punctuation.
    DATABASE_NAME_CHARACTER = WireError::plain_text("unrecognized character in database name");
    /// A name with punctuation.
    DATABASE_NAME_PUNCTUATION =
        WireError::plain_text("punctuation marks and symbols are not allowed in database name");
    /// The database is not loaded.
    ALREADY_CLOSED = WireError::plain_text("already closed");
    /// LoadDatabase of one that is loaded.
    DATABASE_LOADED = WireError::coded(ImmuCode::InternalError, "database already loaded");
    /// DeleteDatabase of one that is loaded.
    DATABASE_OPEN = WireError::plain_text("cannot delete an open database");
    /// TruncateDatabase when nothing is old enough.
    RETENTION_NOT_REACHED = WireError::plain_text("retention period has not been reached");
    /// A write to a replica database.
    IS_REPLICA = WireError::plain_text("database is read-only because it's a replica");
    /// No permission on the named database.
    NO_DATABASE_PERMISSION =
        WireError::plain(Grpc::PermissionDenied, "Logged in user does not have permission on this database");
    /// CreateDatabase by somebody who is not the system administrator.
    NO_OPERATION_PERMISSION =
        WireError::plain_text("loggedin user does not have permissions for this operation");

    // Users. The same words have another code in ChangePermission and ChangeSQLPrivileges than elsewhere.

    /// CreateUser, ChangePassword or SetActiveUser without a name.
    USER_NAME_EMPTY = WireError::plain_text("username can not be empty");
    /// ChangePermission or ChangeSQLPrivileges without a name.
    USER_NAME_EMPTY_ARGUMENT = WireError::plain(Grpc::InvalidArgument, "username can not be empty");
    /// A user name of another form.
    USER_NAME_FORM =
        WireError::plain(Grpc::InvalidArgument, "username can only contain letters, digits and underscores");
    /// CreateUser of a name that is taken.
    USER_EXISTS = WireError::plain_text("user already exists");
    /// A new password that is empty.
    PASSWORD_EMPTY = WireError::plain_text("password is empty");
    /// A new password that is longer than the original can take.
    PASSWORD_TOO_LONG = WireError::plain_text("error hashing password: bcrypt: password length exceeds 72 bytes");
    /// The first administrator's password changed without the caller's present one.
    OLD_PASSWORD_INCORRECT = WireError::plain(Grpc::PermissionDenied, "old password is incorrect");
    /// CreateUser without a database where it is not clear which is meant.
    DATABASE_NAME_EMPTY =
        WireError::plain_text("database name can not be empty when there are multiple databases");
    /// ChangePermission without a database.
    DATABASE_EMPTY_ARGUMENT = WireError::plain(Grpc::InvalidArgument, "database can not be empty");
    /// ChangePermission or ChangeSQLPrivileges of an unknown database.
    DATABASE_NOT_FOUND_ARGUMENT = WireError::plain(Grpc::InvalidArgument, "database does not exist");
    /// CreateUser with a number that is no permission.
    PERMISSION_UNRECOGNIZED = WireError::plain_text("unrecognized permission");
    /// ChangePermission with a number that is no permission.
    PERMISSION_UNRECOGNIZED_ARGUMENT = WireError::plain(Grpc::InvalidArgument, "unrecognized permission");
    /// Neither GRANT nor REVOKE.
    ACTION_UNRECOGNIZED = WireError::plain(Grpc::InvalidArgument, "action not recognized");
    /// A name that is no SQL privilege.
    PRIVILEGE_UNRECOGNIZED = WireError::plain(Grpc::InvalidArgument, "SQL privilege not recognized");
    /// CreateUser by somebody who does not administrate the database.
    NOT_ADMIN_OF_DATABASE = WireError::plain_text("you do not have permission on this database");
    /// ChangePermission or ChangeSQLPrivileges by somebody who does not administrate the database.
    NOT_ADMIN_OF_DATABASE_DENIED =
        WireError::plain(Grpc::PermissionDenied, "you do not have permission on this database");
    /// ChangePassword or SetActiveUser by somebody who administrates nothing.
    NOT_ADMIN_ANYWHERE =
        WireError::plain_text("user is not system admin nor admin in any of the databases");
    /// CreateUser with the permission of the system administrator.
    ANOTHER_SYSADMIN = WireError::plain_text("can not create another system admin");
    /// ChangePermission of the caller.
    OWN_PERMISSIONS = WireError::plain(Grpc::InvalidArgument, "changing your own permissions is not allowed");
    /// ChangePermission of the system administrator.
    SYSADMIN_PERMISSIONS =
        WireError::plain(Grpc::InvalidArgument, "changing sysadmin permissions is not allowed");
    /// ChangeSQLPrivileges of the caller.
    OWN_PRIVILEGES = WireError::plain(Grpc::InvalidArgument, "changing your own privileges is not allowed");
    /// ChangeSQLPrivileges of the system administrator.
    SYSADMIN_PRIVILEGES = WireError::plain(Grpc::InvalidArgument, "changing sysadmin privileges is not allowed");
    /// SetActiveUser of the caller.
    OWN_STATUS = WireError::plain_text("changing your own status is not allowed");
}

/// Longest part of a name in a text, bytes: no name that exists is longer, and a status travels in headers.
const NAME_SHOWN_MAX: usize = 128;

fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_SHOWN_MAX)]
}

/// TruncateDatabase with a period of less than a day.
pub fn retention_period(name: &str) -> Status {
    Status::invalid_argument(format!(
        "rpc error: code = InvalidArgument desc = illegal arguments: invalid retention period for database '{}'. \
         RetentionPeriod should at least '24h0m0s' hours",
        shown(name)
    ))
}

/// CreateUser with an unknown database.
pub fn database_of_user_not_found(name: &str) -> Status {
    plain_text(format!("database {} does not exist", shown(name)))
}

/// SetActiveUser of an unknown user.
pub fn user_not_found(name: &str) -> Status {
    plain_text(format!("user {} not found", shown(name)))
}

/// ChangePermission or ChangeSQLPrivileges of an unknown user.
pub fn user_not_found_coded(name: &str) -> Status {
    Status::not_found(format!("user {} not found", shown(name)))
}

/// ChangePassword of a user that does not exist or is not the caller's.
pub fn user_not_found_or_yours(name: &str) -> Status {
    plain_text(format!("user {} was not found or it was not created by you", shown(name)))
}

/// SetActiveUser of a user that is not the caller's.
pub fn user_not_yours(name: &str) -> Status {
    plain_text(format!("{} was not created by you", shown(name)))
}

/// ChangePermission or ChangeSQLPrivileges of an inactive user.
pub fn user_not_active(name: &str) -> Status {
    Status::failed_precondition(format!("user {} is not active", shown(name)))
}

/// ChangeSQLPrivileges of a user who has no permission on the database.
pub fn user_without_permission(name: &str, database: &str) -> Status {
    Status::failed_precondition(format!("user {} doesn't have permission on database {}", shown(name), shown(database)))
}

/// "illegal arguments: ..." with a reason; `Unknown`, unlike [`ILLEGAL_ARGUMENTS`].
pub fn illegal_arguments(reason: &str) -> Status {
    plain_text(format!("{}: {reason}", ILLEGAL_ARGUMENTS.text()))
}

/// VerifiableTxById with a `proveSinceTx` beyond the last transaction.
pub fn illegal_state(latest_tx: u64, initial_tx: u64) -> Status {
    plain_text(format!("illegal state: latest txID={latest_tx} is lower than specified as initial tx={initial_tx}"))
}

/// replicateTx with a header that is no truth.
pub fn not_a_truth(value: &str) -> Status {
    plain_text(format!("strconv.ParseBool: parsing \"{}\": invalid syntax", shown(value)))
}

/// A streamSet whose write fails with `error` ([`WireError::inside`]).
pub fn stream_set(error: &str) -> Status {
    plain_text(format!("StreamSet receives following error: {error}"))
}

/// A streamVerifiableSet whose write fails with `error` ([`WireError::inside`]).
pub fn stream_verifiable_set(error: &str) -> Status {
    plain_text(format!("StreamVerifiableSet received the following error: {error}"))
}

/// UseDatabase of an unknown database.
pub fn database_not_found(name: &str) -> Status {
    let text = format!("'{}' does not exist", shown(name));
    coded(ImmuCode::InvalidDatabaseName, text.clone(), text)
}

/// ExecAll writes a key twice.
pub fn duplicated_key(key: &[u8]) -> Status {
    Status::invalid_argument(format!(
        "rpc error: code = InvalidArgument desc = {}: key/reference '{}'",
        DUPLICATED_KEYS.text(),
        String::from_utf8_lossy(key)
    ))
}

/// Administration of a database by somebody who may not, whether it exists or not.
pub fn not_your_database(name: &str) -> Status {
    plain_text(format!("the database '{name}' does not exist or you do not have admin permission on this database"))
}

/// A list limit beyond the maximum.
pub fn limit_too_large(limit: u64, limit_max: u64) -> Status {
    plain_text(format!(
        "result size limit exceeded: the specified limit ({limit}) is larger than the maximum allowed one ({limit_max})"
    ))
}

/// A request message beyond the server's limit.
pub fn message_too_large(size_bytes: usize, size_bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({size_bytes} vs. {size_bytes_max})"))
}

/// "illegal arguments" in the settings of a database, as Go renders a wrapped status.
pub fn invalid_settings(reason: &str) -> Status {
    Status::invalid_argument(format!("rpc error: code = InvalidArgument desc = illegal arguments: {reason}"))
}
