//! `alhambra.cluster.ClusterService`: what SDKs have no call for.

use std::sync::Arc;

use alhambra_proto::cluster;
use alhambra_proto::cluster::cluster_service_server::ClusterService;
use tonic::{Request, Response, async_trait};

use super::{Reply, open};
use crate::service::App;

/// `alhambra.cluster.ClusterService`.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) app: Arc<App>,
}

#[async_trait]
impl ClusterService for Cluster {
    async fn take_server_uuid(
        &self,
        request: Request<cluster::TakeServerUuidRequest>,
    ) -> Reply<cluster::TakeServerUuidResponse> {
        let (call, request) = open(request)?;
        let tx = self.app.take_server_uuid(&call, &request.uuid).await?;
        Ok(Response::new(cluster::TakeServerUuidResponse { tx: tx.get() }))
    }
}
