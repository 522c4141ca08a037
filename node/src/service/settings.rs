//! Settings of a database as SDKs know them. Those that apply uses go into the database's own log; the others are kept
//! because clients read back what they wrote, and have no effect here.

use alhambra_storage::command::Settings;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

macro_rules! group {
    ($(#[doc = $doc:literal])+ $name:ident { $($field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs, reason = "names of the protocol, which says what they mean")]
        pub struct $name {
            $(pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

group! {
    /// All of them.
    DatabaseSettings {
        file_size: u32 = 512 << 20,
        max_key_len: u32 = 1024,
        max_value_len: u32 = 32 << 20,
        max_tx_entries: u32 = 1024,
        exclude_commit_time: bool = false,
        max_concurrency: u32 = 30,
        max_io_concurrency: u32 = 1,
        tx_log_cache_size: u32 = 1000,
        v_log_max_opened_files: u32 = 10,
        tx_log_max_opened_files: u32 = 10,
        commit_log_max_opened_files: u32 = 10,
        write_tx_header_version: u32 = 1,
        autoload: bool = true,
        read_tx_pool_size: u32 = 128,
        sync_frequency: i64 = 20,
        write_buffer_size: u32 = 4 << 20,
        max_active_transactions: u32 = 1000,
        mvcc_read_set_limit: u32 = 100_000,
        v_log_cache_size: u32 = 0,
        embedded_values: bool = false,
        prealloc_files: bool = false,
        index: IndexSettings = IndexSettings::default(),
        aht: AhtSettings = AhtSettings::default(),
        truncation: TruncationSettings = TruncationSettings::default(),
        replication: ReplicationSettings = ReplicationSettings::default(),
    }
}

group! {
    /// Of the index.
    IndexSettings {
        flush_threshold: u32 = 100_000,
        sync_threshold: u32 = 1_000_000,
        cache_size: u32 = 128 << 20,
        max_node_size: u32 = 4096,
        max_active_snapshots: u32 = 100,
        renew_snap_root_after: u64 = 1000,
        compaction_thld: u32 = 2,
        delay_during_compaction: u32 = 10,
        nodes_log_max_opened_files: u32 = 10,
        history_log_max_opened_files: u32 = 1,
        commit_log_max_opened_files: u32 = 1,
        flush_buffer_size: u32 = 4096,
        cleanup_percentage: f32 = 0.0,
        max_bulk_size: u32 = 1,
        bulk_preparation_timeout: i64 = 20,
    }
}

group! {
    /// Of the main tree.
    AhtSettings {
        sync_threshold: u32 = 100_000,
        write_buffer_size: u32 = 16 << 20,
    }
}

group! {
    /// Of truncation, milliseconds.
    TruncationSettings {
        retention_period: i64 = 0,
        truncation_frequency: i64 = 86_400_000,
    }
}

group! {
    /// Of the compatible server's replication.
    ReplicationSettings {
        replica: bool = false,
        primary_database: String = String::new(),
        primary_host: String = String::new(),
        primary_port: u32 = 0,
        primary_username: String = String::new(),
        primary_password: String = String::new(),
        sync_replication: bool = false,
        sync_acks: u32 = 0,
        prefetch_tx_buffer_size: u32 = 0,
        replication_commit_concurrency: u32 = 0,
        allow_tx_discarding: bool = false,
        skip_integrity_check: bool = false,
        wait_for_indexing: bool = false,
    }
}

/// Longest key that a database may allow, prefix byte included.
const KEY_LEN_LIMIT: u32 = 1024;
const HOUR_MS: i64 = 3_600_000;
/// How the compatible server begins a refusal that was wrapped once more.
const WRAPPED: &str = "rpc error: code = InvalidArgument desc = illegal arguments: ";

impl DatabaseSettings {
    /// Refuses what is not possible, in the words of the compatible server.
    pub fn check(&self, database: &str) -> Result<()> {
        let refuse = |reason: String| Err(Error::InvalidSettings { reason });
        let store = [
            ("FileSize", self.file_size > 0),
            ("MaxConcurrency", self.max_concurrency > 0),
            ("WriteBufferSize", self.write_buffer_size > 0),
            ("MaxKeyLen", (1..=KEY_LEN_LIMIT).contains(&self.max_key_len)),
            ("MaxValueLen", self.max_value_len > 0),
            ("WriteTxHeaderVersion", self.write_tx_header_version <= 1),
            ("MaxTxEntries", self.max_tx_entries > 0 && self.to_apply().is_valid()),
        ];
        if self.read_tx_pool_size == 0 {
            return refuse(format!("{WRAPPED}invalid read tx pool size (0) for database '{database}'"));
        }
        let TruncationSettings { retention_period, truncation_frequency } = self.truncation;
        if retention_period != 0 && retention_period < 24 * HOUR_MS {
            return refuse(format!(
                "{WRAPPED}invalid retention period for database '{database}'. RetentionPeriod should at least '24' hours"
            ));
        }
        if truncation_frequency < HOUR_MS {
            return refuse(format!(
                "{WRAPPED}invalid truncation frequency for database '{database}'. TruncationFrequency should at least '1' \
                 hour"
            ));
        }
        self.check_replication(database)?;
        match store.iter().find(|(_, possible)| !possible) {
            Some((name, _)) => refuse(format!("illegal arguments: invalid options: invalid {name}")),
            None => Ok(()),
        }
    }

    /// Refuses to change what is for ever, in the words of the compatible server.
    pub fn check_change(&self, before: &Self, database: &str) -> Result<()> {
        let permanent = [
            ("file size", self.file_size == before.file_size),
            ("max key length", self.max_key_len == before.max_key_len),
            ("max value length", self.max_value_len == before.max_value_len),
            ("max number of entries per transaction", self.max_tx_entries == before.max_tx_entries),
            ("embedded values", self.embedded_values == before.embedded_values),
            ("prealloc files", self.prealloc_files == before.prealloc_files),
            ("max node size", self.index.max_node_size == before.index.max_node_size),
        ];
        match permanent.iter().find(|(_, same)| !same) {
            Some((name, _)) => Err(Error::InvalidSettings {
                reason: format!("{name} can not be changed after database creation ('{database}')"),
            }),
            None => Ok(()),
        }
    }

    /// Whether they are the others, but for replica mode.
    pub fn differ_in_replica_mode_only(&self, others: &Self) -> bool {
        let mut same = others.clone();
        same.replication.replica = self.replication.replica;
        *self == same
    }

    fn check_replication(&self, database: &str) -> Result<()> {
        let refuse = |reason: String| Err(Error::InvalidSettings { reason: format!("{WRAPPED}{reason}") });
        let replication = &self.replication;
        let of_pulling = [
            ("PrimaryDatabase", !replication.primary_database.is_empty()),
            ("PrimaryHost", !replication.primary_host.is_empty()),
            ("PrimaryPort", replication.primary_port > 0),
            ("PrimaryUsername", !replication.primary_username.is_empty()),
            ("PrimaryPassword", !replication.primary_password.is_empty()),
        ];
        let pulls = of_pulling.iter().find(|(_, given)| *given);
        if replication.replica {
            return match pulls {
                Some((name, _)) => refuse(format!(
                    "{name} cannot be set on database '{database}': it is fed from outside, by 'alhambra import' or replicateTx"
                )),
                None if replication.sync_acks > 0 => {
                    refuse(format!("invalid value for replication option SyncAcks on replica database '{database}'"))
                }
                None => Ok(()),
            };
        }
        let of_replicas = [
            ("PrefetchTxBufferSize", replication.prefetch_tx_buffer_size > 0),
            ("ReplicationCommitConcurrency", replication.replication_commit_concurrency > 0),
            ("AllowTxDiscarding", replication.allow_tx_discarding),
            ("SkipIntegrityCheck", replication.skip_integrity_check),
            ("WaitForIndexing", replication.wait_for_indexing),
        ];
        if let Some((name, _)) = pulls.or_else(|| of_replicas.iter().find(|(_, given)| *given)) {
            return refuse(format!("invalid value for replication option {name} on primary database '{database}'"));
        }
        let begin = format!("invalid replication options for primary database '{database}'.");
        match (replication.sync_replication, replication.sync_acks) {
            (true, 0) => refuse(format!("{begin} It is necessary to have at least one sync replica")),
            (false, 1..) => refuse(format!("{begin} SyncAcks should be set to 0")),
            _ => Ok(()),
        }
    }

    /// Those that apply uses, for a new database.
    pub fn to_apply(&self) -> Settings {
        self.to_apply_after(&Settings::DEFAULT)
    }

    /// Those that apply uses; `before` has those that clients of the compatible server know nothing of.
    pub fn to_apply_after(&self, before: &Settings) -> Settings {
        Settings {
            key_len_max: self.max_key_len,
            value_len_max: self.max_value_len,
            tx_entries_max: self.max_tx_entries,
            header_version: u16::try_from(self.write_tx_header_version).unwrap_or(u16::MAX),
            exclude_commit_time: self.exclude_commit_time,
            replica: self.replication.replica,
            ..before.clone()
        }
    }

    /// As `systemdb` has them.
    pub fn from_record(face: &serde_json::Value, settings: &Settings) -> Self {
        let face: Self = serde_json::from_value(face.clone()).unwrap_or_default();
        Self {
            max_key_len: settings.key_len_max,
            max_value_len: settings.value_len_max,
            max_tx_entries: settings.tx_entries_max,
            write_tx_header_version: settings.header_version.into(),
            exclude_commit_time: settings.exclude_commit_time,
            replication: ReplicationSettings { replica: settings.replica, ..face.replication },
            ..face
        }
    }

    /// As `systemdb` keeps those that apply does not use.
    pub fn to_face(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("plain values have a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_possible_and_survive_the_record() {
        let settings = DatabaseSettings::default();
        settings.check("db").unwrap();
        assert_eq!(settings.to_apply(), Settings::DEFAULT);
        let odd = DatabaseSettings { max_key_len: 32, sync_frequency: 7, ..DatabaseSettings::default() };
        assert_eq!(DatabaseSettings::from_record(&odd.to_face(), &odd.to_apply()), odd);
        let mut replica = odd;
        replica.replication.replica = true;
        replica.check("db").unwrap();
        assert!(replica.to_apply().replica);
        assert_eq!(DatabaseSettings::from_record(&replica.to_face(), &replica.to_apply()), replica);
        assert_eq!(DatabaseSettings::from_record(&serde_json::Value::Null, &Settings::DEFAULT), settings);
    }

    #[test]
    fn what_is_not_possible_is_refused_in_the_words_of_the_compatible_server() {
        let twice = format!("{WRAPPED}{WRAPPED}");
        type Change = fn(&mut DatabaseSettings);
        let cases: [(Change, String); 14] = [
            (|s| s.max_key_len = 0, format!("{WRAPPED}illegal arguments: invalid options: invalid MaxKeyLen")),
            (|s| s.max_key_len = 1025, format!("{WRAPPED}illegal arguments: invalid options: invalid MaxKeyLen")),
            (|s| s.max_value_len = 0, format!("{WRAPPED}illegal arguments: invalid options: invalid MaxValueLen")),
            (|s| s.max_tx_entries = 0, format!("{WRAPPED}illegal arguments: invalid options: invalid MaxTxEntries")),
            (|s| s.file_size = 0, format!("{WRAPPED}illegal arguments: invalid options: invalid FileSize")),
            (
                |s| s.write_tx_header_version = 2,
                format!("{WRAPPED}illegal arguments: invalid options: invalid WriteTxHeaderVersion"),
            ),
            (|s| s.read_tx_pool_size = 0, format!("{twice}invalid read tx pool size (0) for database 'db'")),
            (
                |s| s.truncation.retention_period = HOUR_MS,
                format!(
                    "{twice}invalid retention period for database 'db'. RetentionPeriod should at least '24' hours"
                ),
            ),
            (
                |s| s.truncation.truncation_frequency = 1,
                format!(
                    "{twice}invalid truncation frequency for database 'db'. TruncationFrequency should at least '1' hour"
                ),
            ),
            (
                |s| s.replication.primary_host = "h".into(),
                format!("{twice}invalid value for replication option PrimaryHost on primary database 'db'"),
            ),
            (
                |s| s.replication.sync_replication = true,
                format!(
                    "{twice}invalid replication options for primary database 'db'. It is necessary to have at least one sync replica"
                ),
            ),
            (
                |s| s.replication.sync_acks = 1,
                format!("{twice}invalid replication options for primary database 'db'. SyncAcks should be set to 0"),
            ),
            (
                |s| {
                    s.replication.replica = true;
                    s.replication.primary_host = "h".into();
                },
                format!(
                    "{twice}PrimaryHost cannot be set on database 'db': it is fed from outside, by 'alhambra import' or replicateTx"
                ),
            ),
            (
                |s| {
                    s.replication.replica = true;
                    s.replication.sync_acks = 1;
                },
                format!("{twice}invalid value for replication option SyncAcks on replica database 'db'"),
            ),
        ];
        for (change, expected) in cases {
            let mut settings = DatabaseSettings::default();
            change(&mut settings);
            let status = tonic::Status::from(settings.check("db").unwrap_err());
            assert_eq!((status.code(), status.message()), (tonic::Code::InvalidArgument, expected.as_str()));
        }
    }
}
