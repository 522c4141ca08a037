//! Our own client with its retries, sessions and trusted state, over all nodes.

use std::sync::Arc;

use alhambra_client::{Client, Error, MemoryStateStore, Options};
use futures::future::LocalBoxFuture;
use tonic::Status;

use super::super::client::{DATABASE, DEADLINE, PASSWORD, PORT, dial};
use super::super::setup::NAMES;
use super::super::shared::now;
use super::{Ctx, Done, Op};
use crate::history::{Ending, Trusted};

/// See the module.
pub struct Verify;

/// Clients of this kind have numbers of their own in the history.
const NUMBERS_FROM: u32 = 100;

async fn connect(nodes: usize) -> Result<Client, Error> {
    let options = Options {
        password: PASSWORD.into(),
        database: DATABASE.into(),
        request_timeout: DEADLINE,
        state_store: Some(Arc::new(MemoryStateStore::new())),
        ..Options::default()
    };
    let endpoints = NAMES[..nodes].iter().map(|name| format!("{name}:{PORT}")).collect();
    let connector = tower::service_fn(dial);
    Client::with_dialer(endpoints, options, |endpoint| endpoint.connect_with_connector_lazy(connector)).await
}

impl Op for Verify {
    fn name(&self) -> &'static str {
        "verified-client"
    }

    fn weight(&self) -> u64 {
        8
    }

    fn run<'a>(&'a self, ctx: &'a mut Ctx<'_>) -> LocalBoxFuture<'a, Result<Done, Status>> {
        Box::pin(async move {
            let failed = |error: &Error| Status::unavailable(error.to_string());
            let client = match &ctx.memory.verifier {
                Some(client) => client.clone(),
                None => {
                    let client = connect(ctx.nodes).await.map_err(|e| failed(&e))?;
                    ctx.memory.verifier.insert(client).clone()
                }
            };
            let (key, invoked) = (ctx.key(), now());
            let state = if ctx.rng.below(2) == 0 {
                let value = ctx.value();
                let answer = client.verified_set(key.clone(), value.clone()).await;
                let ending = match &answer {
                    Ok(verified) => Ending::Acknowledged(verified.header.id.0),
                    // Both promise that nothing was applied, and are held to it.
                    Err(Error::Refused { .. } | Error::Unavailable { .. }) => Ending::Refused,
                    Err(_) => Ending::Unknown,
                };
                ctx.wrote(key, value, invoked, ending);
                answer.map(|verified| Some(verified.state))
            } else {
                match client.verified_get(key.clone()).await {
                    Ok(verified) => {
                        ctx.read(key, Some(verified.value.value.to_vec()), invoked);
                        Ok(Some(verified.state))
                    }
                    Err(error) if error.to_string().ends_with("key not found") => {
                        ctx.read(key, None, invoked);
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            };
            match state {
                Ok(Some(state)) => {
                    let (client, tx, alh) = (NUMBERS_FROM + ctx.client, state.tx.0, state.alh.0.to_vec());
                    ctx.shared.borrow_mut().history.trusted.push(Trusted { client, tx, alh });
                    ctx.saw(tx);
                    Ok(Done::Well)
                }
                Ok(None) => Ok(Done::Refused),
                Err(error) => {
                    if matches!(error, Error::Tampered { .. } | Error::OtherServer { .. } | Error::State(_)) {
                        ctx.wrong(format!("P1: our client says {error:?}"));
                    }
                    Err(failed(&error))
                }
            }
        })
    }
}
