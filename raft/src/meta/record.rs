//! Records of `systemdb` as JSON (`docs/format.md`, "systemdb records"), and the records that a node has read.

use std::collections::BTreeMap;

use alhambra_ledger::ids::{DatabaseId, GroupId, TxId};
use alhambra_ledger::kv::{StoredValue, parse_set_key, parse_value, set_key};
use alhambra_storage::command::{Compression, Settings};
use alhambra_storage::index::{ScanSpec, Version};
use alhambra_storage::read::ReadSnapshot;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::forming::is_server_uuid;

use super::{DatabaseRecord, NodeRecord, SESSION_KEY_LEN, SessionId, TruncationOrder, User};

/// Keys of databases begin so.
pub(super) const DATABASE: &str = "database/";
/// Keys of users begin so.
pub(super) const USER: &str = "user/";
/// Keys of deleted databases begin so; their ids follow.
pub(super) const DELETED: &str = "deleted/";
/// Keys of orders to truncate begin so; the ids of the databases follow.
pub(super) const TRUNCATION: &str = "truncation/";
/// Keys of nodes begin so.
pub(super) const NODE: &str = "node/";
/// Keys of the latest ends of all tokens of a user begin so.
pub(super) const LOGOUT: &str = "logout/";
/// Keys of sessions that have selected another database than their first begin so.
pub(super) const SESSION: &str = "session/";

/// Keys of what holds for the whole cluster begin so.
pub(super) const CLUSTER: &str = "cluster/";
/// The UUID that clients see, behind [`CLUSTER`].
pub(super) const SERVER_UUID: &str = "server_uuid";

#[derive(Serialize, Deserialize)]
struct ServerUuidJson {
    uuid: String,
    taken_at: i64,
    taken_by: String,
}

#[derive(Serialize, Deserialize)]
struct NodeJson {
    addr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_key: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct LogoutJson {
    by: String,
}

#[derive(Serialize, Deserialize)]
struct SessionJson {
    database: String,
}

#[derive(Serialize, Deserialize)]
struct DatabaseJson {
    id: String,
    /// Absent in the revision that creates the database: its transaction is the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<u64>,
    members: BTreeMap<u64, String>,
    segment_bytes: u64,
    settings: SettingsJson,
    face: serde_json::Value,
    #[serde(default = "loaded")]
    loaded: bool,
    created_at: i64,
    created_by: String,
}

const fn loaded() -> bool {
    true
}

#[derive(Serialize, Deserialize)]
struct SettingsJson {
    key_len_max: u32,
    value_len_max: u32,
    tx_entries_max: u32,
    header_version: u16,
    exclude_commit_time: bool,
    quota_bytes: u64,
    quota_tx_per_second: u64,
    #[serde(default)]
    compression: CompressionJson,
    #[serde(default)]
    replica: bool,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CompressionJson {
    #[default]
    None,
    Lz4,
}

impl From<Compression> for CompressionJson {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Lz4 => Self::Lz4,
        }
    }
}

impl From<CompressionJson> for Compression {
    fn from(compression: CompressionJson) -> Self {
        match compression {
            CompressionJson::None => Self::None,
            CompressionJson::Lz4 => Self::Lz4,
        }
    }
}

fn json<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("plain records become JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn node_json(node: &NodeRecord) -> String {
    json(&NodeJson { addr: node.addr.clone(), session_key: node.session_key.map(|key| hex(&key)) })
}

/// What is recorded when the cluster takes another server's place. Seconds since 1970-01-01 UTC.
pub(super) fn server_uuid_json(uuid: &str, at: i64, by: &str) -> String {
    json(&ServerUuidJson { uuid: uuid.to_owned(), taken_at: at, taken_by: by.to_owned() })
}

/// See [`server_uuid_json`]. Nothing for what holds for the cluster and is not known to this release.
fn read_server_uuid(name: &str, value: &[u8]) -> Result<Option<String>, RecordError> {
    if name != SERVER_UUID {
        return Ok(None);
    }
    let key = || format!("{CLUSTER}{name}");
    let record: ServerUuidJson =
        serde_json::from_slice(value).map_err(|source| RecordError::Json { key: key(), source })?;
    if is_server_uuid(&record.uuid) { Ok(Some(record.uuid)) } else { Err(RecordError::Form { key: key() }) }
}

fn read_node(id: &str, value: &[u8]) -> Result<NodeRecord, RecordError> {
    let key = || format!("{NODE}{id}");
    let record: NodeJson = serde_json::from_slice(value).map_err(|source| RecordError::Json { key: key(), source })?;
    let session_key = match record.session_key {
        None => None,
        Some(text) => Some(from_hex::<SESSION_KEY_LEN>(&text).ok_or_else(|| RecordError::Form { key: key() })?),
    };
    Ok(NodeRecord { addr: record.addr, session_key })
}

/// What is recorded of the end of all tokens of a user: which node took the last Logout.
pub(super) fn logout_json(by: &str) -> String {
    json(&LogoutJson { by: by.to_owned() })
}

/// The end of a session's key.
pub(super) fn session_name(id: &SessionId) -> String {
    hex(id)
}

/// The session of a stored key; none for other keys.
pub(super) fn session_of_key(key: &[u8]) -> Option<SessionId> {
    let name = std::str::from_utf8(parse_set_key(key).ok()?).ok()?.strip_prefix(SESSION)?;
    from_hex(name)
}

pub(super) fn session_json(database: &str) -> String {
    json(&SessionJson { database: database.to_owned() })
}

/// The selected database of a session, from the stored value of its record.
pub(super) fn read_session(value: &[u8]) -> Option<String> {
    let Ok(StoredValue::Plain(json)) = parse_value(value) else { return None };
    serde_json::from_slice::<SessionJson>(json).ok().map(|record| record.database)
}

pub(super) fn user_json(user: &User) -> String {
    json(user)
}

/// What is recorded of a database; its name is in the key. Group 0 stands for one that is being created: its group is the
/// transaction of this very revision, and later ones repeat the number. So a name that was deleted begins anew.
pub(super) fn database_json(record: &DatabaseRecord) -> String {
    let Settings {
        key_len_max,
        value_len_max,
        tx_entries_max,
        header_version,
        exclude_commit_time,
        quota_bytes,
        quota_tx_per_second,
        compression,
        replica,
    } = record.settings;
    json(&DatabaseJson {
        id: record.id.to_string(),
        group: Some(record.group.get()).filter(|group| *group != 0),
        members: record.members.clone(),
        segment_bytes: record.segment_bytes,
        settings: SettingsJson {
            key_len_max,
            value_len_max,
            tx_entries_max,
            header_version,
            exclude_commit_time,
            quota_bytes,
            quota_tx_per_second,
            compression: compression.into(),
            replica,
        },
        face: record.face.clone(),
        loaded: record.loaded,
        created_at: record.created_at,
        created_by: record.created_by.clone(),
    })
}

/// Digits of a database's id in the name of its folder.
const FOLDER_DIGITS: usize = 8;

/// Name of the folder of a database.
pub(super) fn folder(name: &str, id: DatabaseId) -> String {
    format!("{name}.{}", &id.to_string()[..FOLDER_DIGITS])
}

/// Name and first digits of the id in the name of a folder; nothing for folders that are not named so.
pub(super) fn of_folder(folder: &str) -> Option<(&str, &str)> {
    let (name, digits) = folder.rsplit_once('.')?;
    (digits.len() == FOLDER_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some((name, digits))
}

/// A database that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedDatabase {
    /// Its permanent id.
    pub id: DatabaseId,
    /// The name that it had.
    pub name: String,
    /// The group that it had.
    pub group: GroupId,
}

#[derive(Serialize, Deserialize)]
struct DeletedJson {
    name: String,
    group: u64,
    deleted_at: i64,
    deleted_by: String,
}

/// What is recorded of the end of a database, under its id. Seconds since 1970-01-01 UTC.
pub(super) fn deleted_json(record: &DatabaseRecord, at: i64, by: &str) -> String {
    let (name, group) = (record.name.clone(), record.group.get());
    json(&DeletedJson { name, group, deleted_at: at, deleted_by: by.to_owned() })
}

/// See [`deleted_json`]; `id` is the one in the key.
pub(super) fn read_deleted(id: &str, value: &[u8]) -> Result<DeletedDatabase, RecordError> {
    let key = || format!("{DELETED}{id}");
    let record: DeletedJson =
        serde_json::from_slice(value).map_err(|source| RecordError::Json { key: key(), source })?;
    let id = hex_id(id).ok_or_else(|| RecordError::Form { key: key() })?;
    Ok(DeletedDatabase { id, name: record.name, group: GroupId(record.group) })
}

#[derive(Serialize)]
struct TruncationJson<'a> {
    name: &'a str,
    before: u64,
    cutoff: i64,
    retention_ms: i64,
    ordered_at: i64,
    ordered_by: &'a str,
}

/// What is recorded of an order to truncate, under the id of the database.
pub(super) fn truncation_json(name: &str, order: &TruncationOrder<'_>, at: i64) -> String {
    let &TruncationOrder { before, cutoff, retention_ms, by } = order;
    json(&TruncationJson { name, before: before.get(), cutoff, retention_ms, ordered_at: at, ordered_by: by })
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The key or value has not the form of a record.
    #[error("{key} is not a record")]
    Form {
        /// The key, as text.
        key: String,
    },
    /// The JSON does not parse.
    #[error("{key} does not parse")]
    Json {
        /// The key.
        key: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The value cannot be read.
    #[error("{key} cannot be read")]
    Storage {
        /// The key.
        key: String,
        /// What storage says.
        #[source]
        source: alhambra_storage::error::Error,
    },
}

impl RecordError {
    /// Whether it may be readable later: what has rotted on one node is mended from the others.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Storage { .. })
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn hex_id(text: &str) -> Option<DatabaseId> {
    from_hex(text).map(DatabaseId)
}

/// What transaction `tx` has recorded of a database.
fn read_database(name: &str, tx: TxId, value: &[u8]) -> Result<DatabaseRecord, RecordError> {
    let key = || format!("{DATABASE}{name}");
    let record: DatabaseJson =
        serde_json::from_slice(value).map_err(|source| RecordError::Json { key: key(), source })?;
    let SettingsJson {
        key_len_max,
        value_len_max,
        tx_entries_max,
        header_version,
        exclude_commit_time,
        quota_bytes,
        quota_tx_per_second,
        compression,
        replica,
    } = record.settings;
    Ok(DatabaseRecord {
        name: name.to_owned(),
        group: GroupId(record.group.unwrap_or(tx.get())),
        id: hex_id(&record.id).ok_or_else(|| RecordError::Form { key: key() })?,
        members: record.members,
        segment_bytes: record.segment_bytes,
        settings: Settings {
            key_len_max,
            value_len_max,
            tx_entries_max,
            header_version,
            exclude_commit_time,
            quota_bytes,
            quota_tx_per_second,
            compression: compression.into(),
            replica,
        },
        face: record.face,
        loaded: record.loaded,
        created_at: record.created_at,
        created_by: record.created_by,
    })
}

/// The records of one moment, each with the transaction that wrote it.
#[derive(Debug, Default)]
pub(super) struct Records {
    databases: BTreeMap<String, (DatabaseRecord, TxId)>,
    users: BTreeMap<String, (User, TxId)>,
    nodes: BTreeMap<String, (NodeRecord, TxId)>,
    /// Only when: what they say is for people.
    logouts: BTreeMap<String, TxId>,
    cluster: BTreeMap<String, (Option<String>, TxId)>,
    /// See [`Records::has_others`].
    has_others: bool,
}

impl Records {
    pub(super) fn databases(&self) -> impl Iterator<Item = &DatabaseRecord> {
        self.databases.values().map(|(record, _)| record)
    }

    pub(super) fn database(&self, name: &str) -> Option<(&DatabaseRecord, TxId)> {
        self.databases.get(name).map(|(record, tx)| (record, *tx))
    }

    pub(super) fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values().map(|(user, _)| user)
    }

    pub(super) fn user(&self, name: &str) -> Option<(&User, TxId)> {
        self.users.get(name).map(|(user, tx)| (user, *tx))
    }

    pub(super) fn node(&self, id: u64) -> Option<(&NodeRecord, TxId)> {
        self.nodes.get(&id.to_string()).map(|(node, tx)| (node, *tx))
    }

    /// Whether there are more databases or users than every cluster has; what cannot be read is there, too.
    pub(super) fn has_others(&self) -> bool {
        self.has_others
    }

    /// The UUID of the server whose place the cluster has taken.
    pub(super) fn server_uuid(&self) -> Option<&str> {
        self.cluster.get(SERVER_UUID).and_then(|(uuid, _)| uuid.as_deref())
    }

    /// When all tokens of a user were ended last.
    pub(super) fn logout(&self, name: &str) -> Option<TxId> {
        self.logouts.get(name).copied()
    }

    /// Takes over what the snapshot has. Values are read only for records that are new or changed; one that cannot be used
    /// keeps its old form and is reported. When the keys cannot be read at all, nothing changes.
    pub(super) fn refresh(
        &mut self,
        snapshot: &ReadSnapshot,
    ) -> Result<Vec<RecordError>, alhambra_storage::error::Error> {
        let mut errors = Vec::new();
        let (databases, users) = (versions(snapshot, DATABASE)?, versions(snapshot, USER)?);
        let (nodes, logouts) = (versions(snapshot, NODE)?, versions(snapshot, LOGOUT)?);
        let cluster = versions(snapshot, CLUSTER)?;
        self.has_others = databases.there().count() > 1 || users.there().count() > 1;
        self.databases = refresh(snapshot, databases, &mut self.databases, &mut errors, read_database);
        self.users = refresh(snapshot, users, &mut self.users, &mut errors, |name, _, value| {
            serde_json::from_slice(value).map_err(|source| RecordError::Json { key: format!("{USER}{name}"), source })
        });
        self.nodes = refresh(snapshot, nodes, &mut self.nodes, &mut errors, |id, _, value| read_node(id, value));
        // Of these only the place counts, so that no damage hides one.
        self.logouts = logouts.there().filter_map(|(name, tx)| Some((name?.to_owned(), tx))).collect();
        self.cluster =
            refresh(snapshot, cluster, &mut self.cluster, &mut errors, |name, _, value| read_server_uuid(name, value));
        Ok(errors)
    }
}

/// The newest versions of all records of a kind.
struct Versions {
    prefix: &'static str,
    found: Vec<(Bytes, Version)>,
}

impl Versions {
    /// Those that are not deleted, each with its name, if that is one, and its transaction.
    fn there(&self) -> impl Iterator<Item = (Option<&str>, TxId)> {
        let there = self.found.iter().filter(|(_, version)| !version.metadata.deleted);
        there.map(|(key, version)| (text_of(key).strip_prefix(self.prefix), version.tx))
    }
}

/// The key as clients write it; empty for what is no such key.
fn text_of(key: &[u8]) -> &str {
    parse_set_key(key).ok().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default()
}

fn versions(snapshot: &ReadSnapshot, prefix: &'static str) -> Result<Versions, alhambra_storage::error::Error> {
    let all = ScanSpec { prefix: set_key(prefix.as_bytes()).into(), ..ScanSpec::default() };
    Ok(Versions { prefix, found: snapshot.scan(&all).collect::<Result<_, _>>()? })
}

fn refresh<T>(
    snapshot: &ReadSnapshot,
    Versions { prefix, found }: Versions,
    old: &mut BTreeMap<String, (T, TxId)>,
    errors: &mut Vec<RecordError>,
    read: impl Fn(&str, TxId, &[u8]) -> Result<T, RecordError>,
) -> BTreeMap<String, (T, TxId)> {
    let mut new = BTreeMap::new();
    for (key, version) in found {
        let text = text_of(&key);
        let Some(name) = text.strip_prefix(prefix) else {
            errors.push(RecordError::Form { key: format!("{key:?}") });
            continue;
        };
        let kept = old.remove(name);
        if version.metadata.deleted {
            continue;
        }
        if let Some(kept) = kept {
            if kept.1 == version.tx {
                new.insert(name.to_owned(), kept);
                continue;
            }
            old.insert(name.to_owned(), kept);
        }
        let value = snapshot
            .value(&key, &version)
            .map_err(|source| RecordError::Storage { key: text.to_owned(), source })
            .and_then(|value| match parse_value(&value) {
                Ok(StoredValue::Plain(json)) => read(name, version.tx, json),
                Ok(StoredValue::Deletion | StoredValue::Reference { .. }) | Err(_) => {
                    Err(RecordError::Form { key: text.to_owned() })
                }
            });
        match value {
            Ok(record) => {
                new.insert(name.to_owned(), (record, version.tx));
            }
            Err(error) => {
                errors.push(error);
                // What nobody can read may have taken rights away.
                if prefix != USER {
                    new.extend(old.remove(name).map(|kept| (name.to_owned(), kept)));
                }
            }
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            key_len_max: 1024,
            value_len_max: 1 << 25,
            tx_entries_max: 1024,
            header_version: 1,
            exclude_commit_time: false,
            quota_bytes: 0,
            quota_tx_per_second: 0,
            compression: Compression::Lz4,
            replica: false,
        }
    }

    /// The forms of `docs/format.md`.
    #[test]
    fn records_have_fixed_forms_and_are_read_back() {
        let members = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let written = DatabaseRecord {
            name: "orders".into(),
            group: GroupId(9),
            id: DatabaseId([0xab; 16]),
            members,
            segment_bytes: 1 << 20,
            settings: settings(),
            face: serde_json::json!({ "fileSize": 5 }),
            loaded: false,
            created_at: 77,
            created_by: "immudb".into(),
        };
        let text = database_json(&written);
        assert_eq!(
            text,
            concat!(
                r#"{"id":"abababababababababababababababab","group":9,"members":{"1":"a:1","2":"b:1"},"segment_bytes":1048576,"#,
                r#""settings":{"key_len_max":1024,"value_len_max":33554432,"tx_entries_max":1024,"header_version":1,"#,
                r#""exclude_commit_time":false,"quota_bytes":0,"quota_tx_per_second":0,"compression":"lz4","replica":false},"#,
                r#""face":{"fileSize":5},"loaded":false,"#,
                r#""created_at":77,"created_by":"immudb"}"#
            )
        );
        assert_eq!(read_database("orders", TxId(12), text.as_bytes()).unwrap(), written);
        let created = database_json(&DatabaseRecord { group: GroupId(0), ..written.clone() });
        assert!(!created.contains("group"), "{created}");
        assert_eq!(read_database("orders", TxId(9), created.as_bytes()).unwrap(), written, "its own transaction");
        let mut node = NodeRecord { addr: "a:1".into(), session_key: None };
        assert_eq!(node_json(&node), r#"{"addr":"a:1"}"#);
        assert_eq!(read_node("1", node_json(&node).as_bytes()).unwrap(), node);
        node.session_key = Some([0xab; SESSION_KEY_LEN]);
        assert_eq!(node_json(&node), format!(r#"{{"addr":"a:1","session_key":"{}"}}"#, "ab".repeat(SESSION_KEY_LEN)));
        assert_eq!(read_node("1", node_json(&node).as_bytes()).unwrap(), node);
        read_node("1", br#"{"addr":"a:1","session_key":"ab"}"#).unwrap_err();
        assert_eq!(logout_json("eve"), r#"{"by":"eve"}"#);
        let text = server_uuid_json("9m4e2mr0ui3e8a215n4g", 77, "immudb");
        assert_eq!(text, r#"{"uuid":"9m4e2mr0ui3e8a215n4g","taken_at":77,"taken_by":"immudb"}"#);
        assert_eq!(read_server_uuid(SERVER_UUID, text.as_bytes()).unwrap().as_deref(), Some("9m4e2mr0ui3e8a215n4g"));
        assert_eq!(read_server_uuid("of a later release", b"{}").unwrap(), None);
        read_server_uuid(SERVER_UUID, server_uuid_json("9M4E", 77, "immudb").as_bytes()).unwrap_err();
        assert_eq!(session_name(&[0xcd; 16]), "cd".repeat(16));
        let key = |name: &str| set_key(format!("{SESSION}{name}").as_bytes());
        assert_eq!(session_of_key(&key(&"cd".repeat(16))), Some([0xcd; 16]));
        for none in ["", "cd", &"cd".repeat(17), &"xy".repeat(16)] {
            assert_eq!(session_of_key(&key(none)), None, "{none}");
        }
        assert_eq!(session_of_key(&set_key(b"user/cd")), None);
        assert_eq!(session_json("orders"), r#"{"database":"orders"}"#);
        let stored = alhambra_ledger::kv::set_value(session_json("orders").as_bytes());
        assert_eq!(read_session(&stored).as_deref(), Some("orders"));
        assert_eq!(read_session(b"\0nonsense"), None);
        let user = User {
            name: "eve".into(),
            password: "$hash".into(),
            permissions: [("orders".to_owned(), 2)].into(),
            sql_privileges: BTreeMap::new(),
            active: true,
            created_by: "immudb".into(),
            created_at_ms: 5,
        };
        let text = user_json(&user);
        assert_eq!(
            text,
            concat!(
                r#"{"name":"eve","password":"$hash","permissions":{"orders":2},"sql_privileges":{},"active":true,"#,
                r#""created_by":"immudb","created_at_ms":5}"#
            )
        );
        assert_eq!(serde_json::from_str::<User>(&text).unwrap(), user);
    }

    #[test]
    fn ends_and_truncations_have_fixed_forms() {
        let record = DatabaseRecord { name: "orders".into(), ..read_database("orders", TxId(9), RECORD).unwrap() };
        let text = deleted_json(&record, 88, "eve");
        assert_eq!(text, r#"{"name":"orders","group":9,"deleted_at":88,"deleted_by":"eve"}"#);
        let id = "000102030405060708090a0b0c0d0e0f";
        let read = read_deleted(id, text.as_bytes()).unwrap();
        assert_eq!(read, DeletedDatabase { id: record.id, name: "orders".into(), group: GroupId(9) });
        assert!(matches!(read_deleted("0001", text.as_bytes()), Err(RecordError::Form { .. })));
        let order = TruncationOrder { before: TxId(7), cutoff: 86_400, retention_ms: 5, by: "eve" };
        assert_eq!(
            truncation_json("orders", &order, 99),
            r#"{"name":"orders","before":7,"cutoff":86400,"retention_ms":5,"ordered_at":99,"ordered_by":"eve"}"#
        );
        assert_eq!(folder("orders", record.id), "orders.00010203");
        assert_eq!(of_folder("orders.00010203"), Some(("orders", "00010203")));
        for other in ["orders", "orders.0001020", "orders.000102033", "orders.0001020g", "größe.ü0001020"] {
            assert_eq!(of_folder(other), None, "{other}");
        }
    }

    const RECORD: &[u8] = br#"{"id":"000102030405060708090a0b0c0d0e0f","members":{},"segment_bytes":1,"settings":{
        "key_len_max":1,"value_len_max":1,"tx_entries_max":1,"header_version":1,"exclude_commit_time":false,"quota_bytes":0,
        "quota_tx_per_second":0},"face":{},"created_at":1,"created_by":"immudb"}"#;

    #[test]
    fn database_ids_parse_only_in_full() {
        assert_eq!(hex_id("000102030405060708090a0b0c0d0e0f").map(|id| id.0[15]), Some(15));
        for bad in ["", "00", "0001020304050607080g0a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f0"] {
            assert_eq!(hex_id(bad), None);
        }
    }
}
