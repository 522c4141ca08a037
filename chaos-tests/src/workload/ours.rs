//! Our own client, with a trusted state of its own in memory.

use std::sync::Arc;
use std::time::Duration;

use alhambra_client::{Client as Api, Error, MemoryStateStore, Options};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Answer, Client};
use crate::history::Ending;
use crate::process::cluster::{DATABASE, PASSWORD, USER};

/// Its calls end within this.
const DEADLINE: Duration = Duration::from_secs(5);

/// A client that goes to the next node when one cannot serve.
pub struct Ours {
    endpoints: Vec<String>,
    store: Arc<MemoryStateStore>,
    api: Option<Api>,
    /// The trusted state that it had last.
    trusted: Option<(u64, Vec<u8>)>,
}

impl Ours {
    /// A client of these nodes, the first of them first.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, store: Arc::new(MemoryStateStore::new()), api: None, trusted: None }
    }

    /// Connected, or the reason why not: nothing was sent then.
    async fn api(&mut self) -> Result<Api, Error> {
        if let Some(api) = &self.api {
            return Ok(api.clone());
        }
        let options = Options {
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
            database: DATABASE.to_owned(),
            request_timeout: DEADLINE,
            state_store: Some(self.store.clone()),
            ..Options::default()
        };
        let api = Api::connect(self.endpoints.clone(), options).await?;
        Ok(self.api.insert(api).clone())
    }

    /// The trusted state may only have moved forward [V2]; the store refuses otherwise, and this does not believe it.
    async fn moved_forward(&mut self, api: &Api) -> Result<(), String> {
        let state = api.trusted_state().await.map_err(|error| error.to_string())?;
        let (now, before) = (state.as_ref().map_or(0, |s| s.tx.get()), self.trusted.as_ref().map_or(0, |(tx, _)| *tx));
        if now < before {
            return Err(format!("V2: the trusted state moved from {before} back to {now}"));
        }
        self.trusted = state.map(|state| (state.tx.get(), state.alh.0.to_vec()));
        Ok(())
    }
}

/// What a failed call says, if it says what must never be.
fn wrong(error: &Error) -> Option<Answer> {
    let never = match error {
        Error::Tampered { .. } | Error::OtherServer { .. } | Error::Malformed { .. } | Error::State(_) => true,
        Error::Refused { .. } | Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => false,
        // The others are of what we ask for ourselves.
        _ => true,
    };
    never.then(|| Answer::Wrong(format!("{error}: {error:?}")))
}

fn not_written(error: &Error) -> Answer {
    wrong(error).unwrap_or(match error {
        Error::OutcomeUnknown { .. } => Answer::Written(Ending::Unknown),
        // Both promise that nothing was applied, and are held to it.
        _ => Answer::Written(Ending::Refused),
    })
}

impl Client for Ours {
    fn set<'a>(&'a mut self, key: &'a str, value: &'a str, verified: bool) -> BoxFuture<'a, Answer> {
        async move {
            let api = match self.api().await {
                Ok(api) => api,
                Err(error) => return wrong(&error).unwrap_or(Answer::Written(Ending::Refused)),
            };
            let (key, value) = (key.to_owned(), value.to_owned());
            let written = if verified {
                api.verified_set(key, value).await.map(|written| written.header.id)
            } else {
                api.set(key, value).await.map(|header| header.id)
            };
            match written {
                Ok(tx) => match self.moved_forward(&api).await {
                    Ok(()) => Answer::Written(Ending::Acknowledged(tx.get())),
                    Err(text) => Answer::Wrong(text),
                },
                Err(error) => not_written(&error),
            }
        }
        .boxed()
    }

    fn get<'a>(&'a mut self, key: &'a str, verified: bool) -> BoxFuture<'a, Answer> {
        async move {
            let api = match self.api().await {
                Ok(api) => api,
                Err(error) => return wrong(&error).unwrap_or(Answer::NotRead),
            };
            let key = key.to_owned();
            let found = if verified {
                api.verified_get(key).await.map(|found| found.value.value)
            } else {
                api.get(key).await.map(|found| found.value)
            };
            match found {
                Ok(value) => match self.moved_forward(&api).await {
                    Ok(()) => Answer::Found(Some(value.to_vec())),
                    Err(text) => Answer::Wrong(text),
                },
                Err(error) if error.is_key_not_found() => Answer::Found(None),
                Err(error) => wrong(&error).unwrap_or(Answer::NotRead),
            }
        }
        .boxed()
    }

    fn node(&self) -> u32 {
        let at = self.api.as_ref().and_then(|api| self.endpoints.iter().position(|other| other == api.endpoint()));
        at.map_or(0, |at| u32::try_from(at + 1).unwrap_or(0))
    }

    fn trusted(&self) -> Option<(u64, Vec<u8>)> {
        self.trusted.clone()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            if let Some(api) = self.api {
                // A node that does not answer any more ends the session by itself.
                let _ = tokio::time::timeout(DEADLINE, api.close()).await;
            }
        }
        .boxed()
    }
}
