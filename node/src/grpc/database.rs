//! Databases, and what a node says about itself.

use alhambra_proto::code::text;
use alhambra_proto::header;
use alhambra_proto::schema;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response};

use super::{Reply, open, read_reply};
use crate::COMPATIBLE_VERSION;
use crate::error::Error;
use crate::method;
use crate::service::App;
use crate::service::database::Listed;
use crate::service::server;
use crate::service::settings::{AhtSettings, DatabaseSettings, IndexSettings, ReplicationSettings, TruncationSettings};

/// Moves settings between our form and a message in which every value has a wrapper: absent means not given.
macro_rules! wrapped {
    ($ours:ty, $theirs:ident, $update:ident, $full:ident, { $($field:ident: $wrapper:ident,)* }, { $($inner:ident: $inner_theirs:ident $inner_update:ident $inner_full:ident,)* }) => {
        fn $update(settings: &mut $ours, message: schema::$theirs) {
            $(if let Some(given) = message.$field {
                settings.$field = given.value;
            })*
            $(if let Some(given) = message.$inner_theirs {
                $inner_update(&mut settings.$inner, given);
            })*
        }

        fn $full(settings: $ours) -> schema::$theirs {
            schema::$theirs {
                $($field: Some(schema::$wrapper { value: settings.$field }),)*
                $($inner_theirs: Some($inner_full(settings.$inner)),)*
            }
        }
    };
}

wrapped!(DatabaseSettings, DatabaseNullableSettings, update, full, {
    file_size: NullableUint32,
    max_key_len: NullableUint32,
    max_value_len: NullableUint32,
    max_tx_entries: NullableUint32,
    exclude_commit_time: NullableBool,
    max_concurrency: NullableUint32,
    max_io_concurrency: NullableUint32,
    tx_log_cache_size: NullableUint32,
    v_log_max_opened_files: NullableUint32,
    tx_log_max_opened_files: NullableUint32,
    commit_log_max_opened_files: NullableUint32,
    write_tx_header_version: NullableUint32,
    autoload: NullableBool,
    read_tx_pool_size: NullableUint32,
    sync_frequency: NullableMilliseconds,
    write_buffer_size: NullableUint32,
    max_active_transactions: NullableUint32,
    mvcc_read_set_limit: NullableUint32,
    v_log_cache_size: NullableUint32,
    embedded_values: NullableBool,
    prealloc_files: NullableBool,
}, {
    index: index_settings update_index full_index,
    aht: aht_settings update_aht full_aht,
    truncation: truncation_settings update_truncation full_truncation,
    replication: replication_settings update_replication full_replication,
});

wrapped!(IndexSettings, IndexNullableSettings, update_index, full_index, {
    flush_threshold: NullableUint32,
    sync_threshold: NullableUint32,
    cache_size: NullableUint32,
    max_node_size: NullableUint32,
    max_active_snapshots: NullableUint32,
    renew_snap_root_after: NullableUint64,
    compaction_thld: NullableUint32,
    delay_during_compaction: NullableUint32,
    nodes_log_max_opened_files: NullableUint32,
    history_log_max_opened_files: NullableUint32,
    commit_log_max_opened_files: NullableUint32,
    flush_buffer_size: NullableUint32,
    cleanup_percentage: NullableFloat,
    max_bulk_size: NullableUint32,
    bulk_preparation_timeout: NullableMilliseconds,
}, {});

wrapped!(AhtSettings, AhtNullableSettings, update_aht, full_aht, {
    sync_threshold: NullableUint32,
    write_buffer_size: NullableUint32,
}, {});

wrapped!(TruncationSettings, TruncationNullableSettings, update_truncation, full_truncation, {
    retention_period: NullableMilliseconds,
    truncation_frequency: NullableMilliseconds,
}, {});

wrapped!(ReplicationSettings, ReplicationNullableSettings, update_replication, full_replication, {
    replica: NullableBool,
    primary_database: NullableString,
    primary_host: NullableString,
    primary_port: NullableUint32,
    primary_username: NullableString,
    primary_password: NullableString,
    sync_replication: NullableBool,
    sync_acks: NullableUint32,
    prefetch_tx_buffer_size: NullableUint32,
    replication_commit_concurrency: NullableUint32,
    allow_tx_discarding: NullableBool,
    skip_integrity_check: NullableBool,
    wait_for_indexing: NullableBool,
}, {});

/// Moves the deprecated form, in which a number of 0 means not given, into settings.
fn update_deprecated(settings: &mut DatabaseSettings, message: &schema::DatabaseSettings) {
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    settings.file_size = or(message.file_size, settings.file_size);
    settings.max_key_len = or(message.max_key_len, settings.max_key_len);
    settings.max_value_len = or(message.max_value_len, settings.max_value_len);
    settings.max_tx_entries = or(message.max_tx_entries, settings.max_tx_entries);
    settings.exclude_commit_time = message.exclude_commit_time;
    settings.replication = ReplicationSettings {
        replica: message.replica,
        primary_database: message.primary_database.clone(),
        primary_host: message.primary_host.clone(),
        primary_port: message.primary_port,
        primary_username: message.primary_username.clone(),
        primary_password: message.primary_password.clone(),
        ..settings.replication.clone()
    };
}

fn deprecated(message: &schema::DatabaseSettings) -> DatabaseSettings {
    let mut settings = DatabaseSettings::default();
    update_deprecated(&mut settings, message);
    settings
}

fn full_deprecated(database: &str, settings: DatabaseSettings) -> schema::DatabaseSettings {
    schema::DatabaseSettings {
        database_name: database.to_owned(),
        replica: settings.replication.replica,
        primary_database: settings.replication.primary_database,
        primary_host: settings.replication.primary_host,
        primary_port: settings.replication.primary_port,
        primary_username: settings.replication.primary_username,
        primary_password: settings.replication.primary_password,
        file_size: settings.file_size,
        max_key_len: settings.max_key_len,
        max_value_len: settings.max_value_len,
        max_tx_entries: settings.max_tx_entries,
        exclude_commit_time: settings.exclude_commit_time,
    }
}

pub(super) async fn create(app: &App, request: Request<schema::Database>) -> Reply<()> {
    let (call, request) = open(request)?;
    app.create_database(&call, &request.database_name, DatabaseSettings::default(), false).await?;
    Ok(Response::new(()))
}

pub(super) async fn create_with(app: &App, request: Request<schema::DatabaseSettings>) -> Reply<()> {
    let (call, request) = open(request)?;
    app.create_database(&call, &request.database_name, deprecated(&request), false).await?;
    Ok(Response::new(()))
}

pub(super) async fn create_v2(
    app: &App,
    request: Request<schema::CreateDatabaseRequest>,
) -> Reply<schema::CreateDatabaseResponse> {
    let (call, request) = open(request)?;
    let mut settings = DatabaseSettings::default();
    if let Some(given) = request.settings {
        update(&mut settings, given);
    }
    let created = app.create_database(&call, &request.name, settings, request.if_not_exists).await?;
    Ok(Response::new(schema::CreateDatabaseResponse {
        name: created.name,
        settings: Some(full(created.settings)),
        already_existed: created.existed,
    }))
}

pub(super) async fn list(app: &App, request: Request<()>) -> Reply<schema::DatabaseListResponse> {
    let (call, ()) = open(request)?;
    let database = |listed: Listed| schema::Database { database_name: listed.name };
    let databases = app.databases(&call).await?.into_iter().map(database).collect();
    Ok(read_reply(call.level, schema::DatabaseListResponse { databases }))
}

pub(super) async fn list_v2(
    app: &App,
    request: Request<schema::DatabaseListRequestV2>,
) -> Reply<schema::DatabaseListResponseV2> {
    let (call, _) = open(request)?;
    let info = |listed: Listed| schema::DatabaseInfo {
        name: listed.name,
        settings: Some(full(listed.settings)),
        loaded: listed.loaded,
        disk_size: listed.disk_bytes,
        num_transactions: listed.transactions,
        created_at: u64::try_from(listed.created_at).unwrap_or(0),
        created_by: listed.created_by,
    };
    let databases = app.databases(&call).await?.into_iter().map(info).collect();
    Ok(read_reply(call.level, schema::DatabaseListResponseV2 { databases }))
}

pub(super) async fn update_settings(app: &App, request: Request<schema::DatabaseSettings>) -> Reply<()> {
    let (call, request) = open(request)?;
    app.update_database(&call, &request.database_name, |settings| update_deprecated(settings, &request)).await?;
    Ok(Response::new(()))
}

pub(super) async fn update_settings_v2(
    app: &App,
    request: Request<schema::UpdateDatabaseRequest>,
) -> Reply<schema::UpdateDatabaseResponse> {
    let (call, request) = open(request)?;
    let given = request.settings.ok_or(Error::from(text::ILLEGAL_ARGUMENTS))?;
    let settings = app.update_database(&call, &request.database, |settings| update(settings, given.clone())).await?;
    Ok(Response::new(schema::UpdateDatabaseResponse { database: request.database, settings: Some(full(settings)) }))
}

pub(super) async fn load(
    app: &App,
    request: Request<schema::LoadDatabaseRequest>,
) -> Reply<schema::LoadDatabaseResponse> {
    let (call, request) = open(request)?;
    app.load_database(&call, &request.database).await?;
    Ok(Response::new(schema::LoadDatabaseResponse { database: request.database }))
}

pub(super) async fn unload(
    app: &App,
    request: Request<schema::UnloadDatabaseRequest>,
) -> Reply<schema::UnloadDatabaseResponse> {
    let (call, request) = open(request)?;
    app.unload_database(&call, &request.database).await?;
    Ok(Response::new(schema::UnloadDatabaseResponse { database: request.database }))
}

pub(super) async fn delete(
    app: &App,
    request: Request<schema::DeleteDatabaseRequest>,
) -> Reply<schema::DeleteDatabaseResponse> {
    let (call, request) = open(request)?;
    app.delete_database(&call, &request.database).await?;
    Ok(Response::new(schema::DeleteDatabaseResponse { database: request.database }))
}

pub(super) async fn truncate(
    app: &App,
    request: Request<schema::TruncateDatabaseRequest>,
) -> Reply<schema::TruncateDatabaseResponse> {
    let (call, request) = open(request)?;
    app.truncate_database(&call, &request.database, request.retention_period).await?;
    Ok(Response::new(schema::TruncateDatabaseResponse { database: request.database }))
}

pub(super) async fn settings(app: &App, request: Request<()>) -> Reply<schema::DatabaseSettings> {
    let (call, ()) = open(request)?;
    let visit = app.visit(&call, &method::GET_DATABASE_SETTINGS)?;
    let settings = app.database_settings(&visit).await?;
    Ok(read_reply(visit.level, full_deprecated(visit.database.name(), settings)))
}

pub(super) async fn settings_v2(
    app: &App,
    request: Request<schema::DatabaseSettingsRequest>,
) -> Reply<schema::DatabaseSettingsResponse> {
    let (call, _) = open(request)?;
    let visit = app.visit(&call, &method::GET_DATABASE_SETTINGS_V2)?;
    let settings = Some(full(app.database_settings(&visit).await?));
    let database = visit.database.name().to_string();
    Ok(read_reply(visit.level, schema::DatabaseSettingsResponse { database, settings }))
}

pub(super) async fn flush_index(
    app: &App,
    request: Request<schema::FlushIndexRequest>,
) -> Reply<schema::FlushIndexResponse> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::FLUSH_INDEX).await?;
    app.flush_index(&cx, request.cleanup_percentage).await?;
    Ok(Response::new(schema::FlushIndexResponse { database: cx.replica.name().to_string() }))
}

pub(super) async fn compact_index(app: &App, request: Request<()>) -> Reply<()> {
    let (call, ()) = open(request)?;
    let cx = app.enter(&call, &method::COMPACT_INDEX).await?;
    app.compact_index(&cx).await?;
    Ok(Response::new(()))
}

fn with_version<T>(message: T) -> Response<T> {
    let mut response = Response::new(message);
    response.metadata_mut().insert(header::VERSION, MetadataValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}

pub(super) fn health(_: Request<()>) -> Reply<schema::HealthResponse> {
    // Clients compare the three numbers at the beginning to know what they may ask for.
    Ok(with_version(schema::HealthResponse { status: true, version: format!("{COMPATIBLE_VERSION}-alhambra") }))
}

pub(super) fn server_info(app: &App, _: Request<schema::ServerInfoRequest>) -> Reply<schema::ServerInfoResponse> {
    let info = app.server_info()?;
    Ok(with_version(schema::ServerInfoResponse {
        version: COMPATIBLE_VERSION.to_owned(),
        started_at: info.started_at,
        num_transactions: i64::try_from(info.transactions).unwrap_or(i64::MAX),
        num_databases: i32::try_from(info.databases).unwrap_or(i32::MAX),
        databases_disk_size: i64::try_from(info.disk_bytes).unwrap_or(i64::MAX),
    }))
}

pub(super) fn database_health(app: &App, request: Request<()>) -> Reply<schema::DatabaseHealthResponse> {
    let (call, ()) = open(request)?;
    let visit = app.visit(&call, &method::DATABASE_HEALTH)?;
    let health = server::database_health(&visit);
    Ok(Response::new(schema::DatabaseHealthResponse {
        pending_requests: health.pending,
        last_request_completed_at: health.last_completed_ms,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrapper_is_filled_and_read_back() {
        let mut settings = DatabaseSettings { max_key_len: 32, autoload: false, ..DatabaseSettings::default() };
        settings.index.cleanup_percentage = 1.5;
        settings.replication.primary_host = "h".into();
        let message = full(settings.clone());
        let mut again = DatabaseSettings::default();
        update(&mut again, message);
        assert_eq!(again, settings);
    }

    #[test]
    fn an_absent_wrapper_keeps_the_default_and_a_present_zero_counts() {
        let mut settings = DatabaseSettings::default();
        update(&mut settings, schema::DatabaseNullableSettings::default());
        assert_eq!(settings, DatabaseSettings::default());
        let zero = Some(schema::NullableUint32 { value: 0 });
        update(&mut settings, schema::DatabaseNullableSettings { max_key_len: zero, ..Default::default() });
        assert_eq!(settings.max_key_len, 0);
    }

    #[test]
    fn in_the_deprecated_form_zero_means_the_default() {
        let settings = deprecated(&schema::DatabaseSettings { max_key_len: 32, ..Default::default() });
        assert_eq!(settings, DatabaseSettings { max_key_len: 32, ..DatabaseSettings::default() });
    }
}
