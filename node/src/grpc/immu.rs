//! Two of the three services: every call that is built hands on to its area; the others are answered by the generated defaults, which
//! are `UNIMPLEMENTED` and name the call.

use std::sync::Arc;

use alhambra_proto::code::text;
use alhambra_proto::model::document_service_server::DocumentService;
use alhambra_proto::schema;
use alhambra_proto::schema::immu_service_server::ImmuService;
use tonic::codegen::BoxStream;
use tonic::{Request, Streaming, async_trait};

use super::{Reply, database, exec, kv, session, stream, user, verified};
use crate::service::App;

/// `immudb.schema.ImmuService`.
#[derive(Clone, Debug)]
pub(super) struct Immu {
    pub(super) app: Arc<App>,
}

/// `immudb.model.DocumentService`: none of it yet.
#[derive(Clone, Debug)]
pub(super) struct Documents;

impl DocumentService for Documents {}

#[async_trait]
impl ImmuService for Immu {
    async fn open_session(&self, request: Request<schema::OpenSessionRequest>) -> Reply<schema::OpenSessionResponse> {
        session::open_session(&self.app, request).await
    }

    async fn close_session(&self, request: Request<()>) -> Reply<()> {
        session::close_session(&self.app, request).await
    }

    async fn keep_alive(&self, request: Request<()>) -> Reply<()> {
        session::keep_alive(&self.app, request)
    }

    async fn login(&self, request: Request<schema::LoginRequest>) -> Reply<schema::LoginResponse> {
        session::login(&self.app, request).await
    }

    async fn logout(&self, request: Request<()>) -> Reply<()> {
        session::logout(&self.app, request).await
    }

    async fn use_database(&self, request: Request<schema::Database>) -> Reply<schema::UseDatabaseReply> {
        session::use_database(&self.app, request).await
    }

    async fn update_auth_config(&self, _: Request<schema::AuthConfig>) -> Reply<()> {
        Err(text::OPERATION_NOT_SUPPORTED.status())
    }

    async fn update_mtls_config(&self, _: Request<schema::MtlsConfig>) -> Reply<()> {
        Err(text::OPERATION_NOT_SUPPORTED.status())
    }

    async fn list_users(&self, request: Request<()>) -> Reply<schema::UserList> {
        user::list(&self.app, request).await
    }

    async fn create_user(&self, request: Request<schema::CreateUserRequest>) -> Reply<()> {
        user::create(&self.app, request).await
    }

    async fn change_password(&self, request: Request<schema::ChangePasswordRequest>) -> Reply<()> {
        user::change_password(&self.app, request).await
    }

    async fn change_permission(&self, request: Request<schema::ChangePermissionRequest>) -> Reply<()> {
        user::change_permission(&self.app, request).await
    }

    async fn change_sql_privileges(
        &self,
        request: Request<schema::ChangeSqlPrivilegesRequest>,
    ) -> Reply<schema::ChangeSqlPrivilegesResponse> {
        user::change_sql_privileges(&self.app, request).await
    }

    async fn set_active_user(&self, request: Request<schema::SetActiveUserRequest>) -> Reply<()> {
        user::set_active(&self.app, request).await
    }

    async fn health(&self, request: Request<()>) -> Reply<schema::HealthResponse> {
        database::health(request)
    }

    async fn server_info(&self, request: Request<schema::ServerInfoRequest>) -> Reply<schema::ServerInfoResponse> {
        database::server_info(&self.app, request)
    }

    async fn database_health(&self, request: Request<()>) -> Reply<schema::DatabaseHealthResponse> {
        database::database_health(&self.app, request)
    }

    async fn create_database(&self, request: Request<schema::Database>) -> Reply<()> {
        database::create(&self.app, request).await
    }

    async fn create_database_with(&self, request: Request<schema::DatabaseSettings>) -> Reply<()> {
        database::create_with(&self.app, request).await
    }

    async fn create_database_v2(
        &self,
        request: Request<schema::CreateDatabaseRequest>,
    ) -> Reply<schema::CreateDatabaseResponse> {
        database::create_v2(&self.app, request).await
    }

    async fn load_database(
        &self,
        request: Request<schema::LoadDatabaseRequest>,
    ) -> Reply<schema::LoadDatabaseResponse> {
        database::load(&self.app, request).await
    }

    async fn unload_database(
        &self,
        request: Request<schema::UnloadDatabaseRequest>,
    ) -> Reply<schema::UnloadDatabaseResponse> {
        database::unload(&self.app, request).await
    }

    async fn delete_database(
        &self,
        request: Request<schema::DeleteDatabaseRequest>,
    ) -> Reply<schema::DeleteDatabaseResponse> {
        database::delete(&self.app, request).await
    }

    async fn truncate_database(
        &self,
        request: Request<schema::TruncateDatabaseRequest>,
    ) -> Reply<schema::TruncateDatabaseResponse> {
        database::truncate(&self.app, request).await
    }

    async fn database_list(&self, request: Request<()>) -> Reply<schema::DatabaseListResponse> {
        database::list(&self.app, request).await
    }

    async fn database_list_v2(
        &self,
        request: Request<schema::DatabaseListRequestV2>,
    ) -> Reply<schema::DatabaseListResponseV2> {
        database::list_v2(&self.app, request).await
    }

    async fn update_database(&self, request: Request<schema::DatabaseSettings>) -> Reply<()> {
        database::update_settings(&self.app, request).await
    }

    async fn update_database_v2(
        &self,
        request: Request<schema::UpdateDatabaseRequest>,
    ) -> Reply<schema::UpdateDatabaseResponse> {
        database::update_settings_v2(&self.app, request).await
    }

    async fn get_database_settings(&self, request: Request<()>) -> Reply<schema::DatabaseSettings> {
        database::settings(&self.app, request).await
    }

    async fn get_database_settings_v2(
        &self,
        request: Request<schema::DatabaseSettingsRequest>,
    ) -> Reply<schema::DatabaseSettingsResponse> {
        database::settings_v2(&self.app, request).await
    }

    async fn flush_index(&self, request: Request<schema::FlushIndexRequest>) -> Reply<schema::FlushIndexResponse> {
        database::flush_index(&self.app, request).await
    }

    async fn compact_index(&self, request: Request<()>) -> Reply<()> {
        database::compact_index(&self.app, request).await
    }

    async fn current_state(&self, request: Request<()>) -> Reply<schema::ImmutableState> {
        verified::current_state(&self.app, request).await
    }

    async fn set(&self, request: Request<schema::SetRequest>) -> Reply<schema::TxHeader> {
        kv::set(&self.app, request).await
    }

    async fn get(&self, request: Request<schema::KeyRequest>) -> Reply<schema::Entry> {
        kv::get(&self.app, request).await
    }

    async fn get_all(&self, request: Request<schema::KeyListRequest>) -> Reply<schema::Entries> {
        kv::get_all(&self.app, request).await
    }

    async fn delete(&self, request: Request<schema::DeleteKeysRequest>) -> Reply<schema::TxHeader> {
        kv::delete(&self.app, request).await
    }

    async fn scan(&self, request: Request<schema::ScanRequest>) -> Reply<schema::Entries> {
        kv::scan(&self.app, request).await
    }

    async fn history(&self, request: Request<schema::HistoryRequest>) -> Reply<schema::Entries> {
        kv::history(&self.app, request).await
    }

    async fn count(&self, request: Request<schema::KeyPrefix>) -> Reply<schema::EntryCount> {
        kv::count(&self.app, request).await
    }

    async fn count_all(&self, request: Request<()>) -> Reply<schema::EntryCount> {
        kv::count_all(&self.app, request).await
    }

    async fn exec_all(&self, request: Request<schema::ExecAllRequest>) -> Reply<schema::TxHeader> {
        exec::exec_all(&self.app, request).await
    }

    async fn set_reference(&self, request: Request<schema::ReferenceRequest>) -> Reply<schema::TxHeader> {
        exec::set_reference(&self.app, request).await
    }

    async fn verifiable_set_reference(
        &self,
        request: Request<schema::VerifiableReferenceRequest>,
    ) -> Reply<schema::VerifiableTx> {
        exec::verifiable_set_reference(&self.app, request).await
    }

    async fn z_add(&self, request: Request<schema::ZAddRequest>) -> Reply<schema::TxHeader> {
        exec::z_add(&self.app, request).await
    }

    async fn verifiable_z_add(&self, request: Request<schema::VerifiableZAddRequest>) -> Reply<schema::VerifiableTx> {
        exec::verifiable_z_add(&self.app, request).await
    }

    async fn z_scan(&self, request: Request<schema::ZScanRequest>) -> Reply<schema::ZEntries> {
        exec::z_scan(&self.app, request).await
    }

    async fn tx_by_id(&self, request: Request<schema::TxRequest>) -> Reply<schema::Tx> {
        kv::tx_by_id(&self.app, request).await
    }

    async fn tx_scan(&self, request: Request<schema::TxScanRequest>) -> Reply<schema::TxList> {
        kv::tx_scan(&self.app, request).await
    }

    async fn verifiable_set(&self, request: Request<schema::VerifiableSetRequest>) -> Reply<schema::VerifiableTx> {
        verified::set(&self.app, request).await
    }

    async fn verifiable_get(&self, request: Request<schema::VerifiableGetRequest>) -> Reply<schema::VerifiableEntry> {
        verified::get(&self.app, request).await
    }

    async fn verifiable_tx_by_id(&self, request: Request<schema::VerifiableTxRequest>) -> Reply<schema::VerifiableTx> {
        verified::tx_by_id(&self.app, request).await
    }

    async fn stream_get(&self, request: Request<schema::KeyRequest>) -> Reply<BoxStream<schema::Chunk>> {
        stream::get(&self.app, request).await
    }

    async fn stream_set(&self, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::TxHeader> {
        stream::set(&self.app, request).await
    }

    async fn stream_verifiable_get(
        &self,
        request: Request<schema::VerifiableGetRequest>,
    ) -> Reply<BoxStream<schema::Chunk>> {
        stream::verifiable_get(&self.app, request).await
    }

    async fn stream_verifiable_set(&self, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::VerifiableTx> {
        stream::verifiable_set(&self.app, request).await
    }

    async fn stream_scan(&self, request: Request<schema::ScanRequest>) -> Reply<BoxStream<schema::Chunk>> {
        stream::scan(&self.app, request).await
    }

    async fn stream_z_scan(&self, request: Request<schema::ZScanRequest>) -> Reply<BoxStream<schema::Chunk>> {
        stream::z_scan(&self.app, request).await
    }

    async fn stream_exec_all(&self, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::TxHeader> {
        stream::exec_all(&self.app, request).await
    }

    async fn export_tx(&self, request: Request<schema::ExportTxRequest>) -> Reply<BoxStream<schema::Chunk>> {
        stream::export_one(&self.app, request).await
    }

    async fn replicate_tx(&self, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::TxHeader> {
        stream::import_one(&self.app, request).await
    }

    async fn stream_export_tx(
        &self,
        request: Request<Streaming<schema::ExportTxRequest>>,
    ) -> Reply<BoxStream<schema::Chunk>> {
        stream::export_many(&self.app, request).await
    }

    async fn stream_history(&self, request: Request<schema::HistoryRequest>) -> Reply<BoxStream<schema::Chunk>> {
        stream::history(&self.app, request).await
    }
}
