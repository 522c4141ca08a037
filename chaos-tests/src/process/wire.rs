//! Reading a node's whole ledger over real connections.

use std::time::Duration;

use tonic::Status;
use tonic::transport::Endpoint;

use super::cluster::{DATABASE, PASSWORD, USER};
use crate::reader::{Reader, Whole};

/// A session on one node; every call ends within `deadline`.
pub async fn open(endpoint: &str, deadline: Duration) -> Result<Reader, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"));
    let endpoint = endpoint.map_err(|error| Status::internal(error.to_string()))?.connect_timeout(deadline);
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Reader::open(channel, USER, PASSWORD, DATABASE, deadline).await
}

/// All transactions that a node has, from the first on.
pub async fn whole(reader: &mut Reader) -> Result<Whole, Status> {
    let mut all = Whole::default();
    loop {
        let batch = reader.transactions(all.chain.len() as u64 + 1).await?;
        if batch.is_empty() {
            return Ok(all);
        }
        all.extend(batch);
    }
}
