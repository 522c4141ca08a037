//! The client library as the commands use it: connected, with its trusted states in a folder, its errors in our words.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use alhambra_client::{Client, Entry, Error, Options, TxId};
use alhambra_ledger::digest::sha256;
use alhambra_ledger::kv;
use alhambra_proto::code::{WireError, text as wire};
use alhambra_proto::convert::Tx;
use tokio::time::timeout;

use crate::connect::{Connect, StateDir, Target};
use crate::failure::{Failure, Kind, chain};
use crate::output::text;

/// How long a command waits for a node before it says that it does.
const QUIET: Duration = Duration::from_secs(1);

/// What says that the user may not.
const FORBIDDEN: [WireError; 6] = [
    wire::PERMISSION_DENIED,
    wire::NO_DATABASE_PERMISSION,
    wire::NO_OPERATION_PERMISSION,
    wire::NOT_ADMIN_OF_DATABASE,
    wire::NOT_ADMIN_OF_DATABASE_DENIED,
    wire::NOT_ADMIN_ANYWHERE,
];

/// A connected client.
pub struct Trusted {
    /// The calls.
    pub client: Client,
    target: Target,
    /// Transactions that were verified already.
    verified: BTreeMap<TxId, Tx>,
}

impl Trusted {
    /// Connects. Without a state folder, trusted states are forgotten when the command ends.
    pub async fn connect(connect: &Connect, states: Option<&StateDir>) -> Result<Trusted, Failure> {
        Trusted::open(connect.target()?, states).await
    }

    /// Connects without trusting anything yet.
    pub async fn enter(target: Target) -> Result<Trusted, Failure> {
        Trusted::open(target, None).await
    }

    async fn open(target: Target, states: Option<&StateDir>) -> Result<Trusted, Failure> {
        let options = Options {
            login: target.login,
            user: target.username.clone(),
            password: target.password.clone(),
            database: target.database.clone(),
            state_dir: states.map(StateDir::path).transpose()?,
            tls: target.tls.clone(),
            server_public_key: target.server_key.clone(),
            ..Options::default()
        };
        let patience = options.request_timeout;
        let mut connecting = pin!(Client::connect(target.endpoints.clone(), options));
        let connected = match timeout(QUIET, &mut connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                let endpoints = target.endpoints.join(", ");
                eprintln!("{endpoints}: no answer yet; trying for {} s", patience.as_secs());
                connecting.await
            }
        };
        match connected {
            Ok(client) => Ok(Trusted { client, target, verified: BTreeMap::new() }),
            Err(error @ Error::Unavailable { .. }) => Err(Failure::new(
                Kind::Unavailable,
                format!("no node answers at {}: {}", target.endpoints.join(", "), chain(&error)),
                "start one (`alhambra demo` starts three on this machine), or name others with --endpoint",
            )),
            Err(error) => Err(explain(&error, &target, None)),
        }
    }

    /// Ends the session, and hands on the outcome of what was done in it.
    pub async fn close<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.client.close().await;
        outcome
    }

    /// An error of the client library in our words.
    pub fn explain(&self, error: &Error, key: Option<&[u8]>) -> Failure {
        explain(error, &self.target, key)
    }

    /// Verifies that an entry of a history or a scan is in the transaction it claims, and that transaction in the
    /// history. `Ok(false)` where there is nothing to compare with: the value of an expired entry is not shown, and of a
    /// reference the value is somebody else's.
    pub async fn verify_entry(&mut self, entry: &Entry) -> Result<bool, Failure> {
        let (key, tx) = match &entry.referenced_by {
            Some(reference) => (&reference.key, reference.tx),
            None => (&entry.key, entry.tx),
        };
        if !self.verified.contains_key(&tx) {
            let answer = self.client.verified_tx_by_id(tx).await.map_err(|error| self.explain(&error, Some(key)))?;
            self.verified.insert(tx, answer.value);
        }
        let stored_key = kv::set_key(key);
        let found = self.verified[&tx].entries.iter().find(|candidate| candidate.key == stored_key);
        let holds = found.is_some_and(|found| match &entry.referenced_by {
            Some(by) => found.value_hash == sha256(&kv::reference_value(by.at_tx, &entry.key)),
            None if found.metadata != entry.metadata => false,
            // A deletion may carry a value; the usual one stores nothing at all.
            None if entry.metadata.deleted && entry.value.is_empty() && found.value_len == 0 => {
                found.value_hash == sha256(b"")
            }
            None => entry.expired || found.value_hash == sha256(&kv::set_value(&entry.value)),
        });
        if !holds {
            return Err(Failure::new(
                Kind::Tampered,
                format!("tx {tx} is in the history, but does not hold what the server shows for {:?}", text(key)),
                "do not trust this answer; ask another node, and tell whoever runs this one",
            ));
        }
        Ok(!entry.expired && entry.referenced_by.is_none())
    }
}

fn explain(error: &Error, target: &Target, key: Option<&[u8]>) -> Failure {
    let what = chain(error);
    let endpoints = target.endpoints.join(", ");
    let key = key.map_or_else(|| "it".to_owned(), |key| format!("{:?}", text(key)));
    match error {
        Error::NoEndpoint | Error::BadEndpoint { .. } => {
            Failure::new(Kind::Usage, what, "write each endpoint as HOST:PORT")
        }
        Error::NoSuchVersion { .. } => {
            Failure::new(Kind::Usage, what, "name the transaction to bind to, or leave it out")
        }
        Error::BadTls { .. } => {
            Failure::new(Kind::Usage, what, "check the files of --cacert, --certificate and --pkey: they must be PEM")
        }
        Error::Untrusted { .. } => Failure::failed(
            what,
            "name who vouches for it with --cacert FILE, or its name with --servername; the password was not sent",
        ),
        Error::Unavailable { .. } => Failure::new(
            Kind::Unavailable,
            format!("{what} ({endpoints})"),
            "surely nothing was written: see `alhambra status`, then try again; other nodes are named with --endpoint",
        ),
        Error::OutcomeUnknown { .. } => Failure::new(
            Kind::OutcomeUnknown,
            what,
            format!("look before writing again: read {key} back; `alhambra status` shows how the cluster is"),
        ),
        Error::Refused { .. } if error.is_key_not_found() => {
            Failure::new(Kind::NotFound, format!("there is no key {key}"), "see `alhambra scan` for the keys there are")
        }
        Error::Refused { status, .. } if wire::AUTH_DISABLED.is(status) => {
            Failure::failed(what, "nobody logs in at this server: say --no-login")
        }
        Error::Refused { status, .. }
            if !target.login && (wire::PLEASE_LOGIN.is(status) || wire::NOT_LOGGED_IN.is(status)) =>
        {
            Failure::failed(what, "this server wants a login: leave --no-login out").for_want_of_login()
        }
        Error::Refused { .. } if error.is_login_refused() => Failure::failed(
            format!("user {:?}: {what}", target.username),
            "check --username and --password, or ALHAMBRA_USERNAME and ALHAMBRA_PASSWORD",
        ),
        Error::Refused { .. } if error.is_database_not_found() => Failure::new(
            Kind::NotFound,
            format!("database {:?}: {what}", target.database),
            "name another with --database; `alhambra status` shows which there are",
        ),
        Error::Refused { status, .. } if status.message().starts_with("too many wrong passwords") => {
            Failure::failed(what, "check --username and --password, wait as long as the message says, then try again")
        }
        Error::Refused { status, .. } if status.code() == tonic::Code::ResourceExhausted => Failure::failed(
            what,
            "nothing is wrong with the call: wait, or make room as the message says, and repeat it",
        ),
        Error::Refused { status, .. } if wire::ALREADY_CLOSED.is(status) => Failure::failed(
            what,
            "the database is unloaded: `alhambra database list` shows which are, `alhambra database load NAME` opens one",
        ),
        Error::Refused { status, .. } if FORBIDDEN.iter().any(|text| text.is(status)) => Failure::failed(
            format!("user {:?}: {what}", target.username),
            "name a user who may with --username, or have an administrator grant it: `alhambra user list` shows who may do what",
        ),
        Error::Refused { .. } => Failure::failed(what, "change the call as the message says"),
        Error::Tampered { .. } => Failure::new(
            Kind::Tampered,
            what,
            "do not trust this server: keep the evidence, compare with other nodes, and tell whoever runs it; the \
             trusted state was left as it was",
        ),
        Error::OtherServer { .. } => {
            Failure::failed(what, "name only nodes of one cluster with --endpoint; a new cluster is another server")
        }
        Error::NotKept { .. } => Failure::new(
            Kind::OutcomeUnknown,
            what,
            "the write stands: do not repeat it; make the state folder writable or name another with --state-dir",
        ),
        Error::State(_) => Failure::failed(
            what,
            "make the state folder writable, name another with --state-dir, or remove the file to trust anew",
        ),
        Error::BadPublicKey { .. } => Failure::new(
            Kind::Usage,
            what,
            "--server-signing-pub-key names a P-256 public key in PEM (BEGIN PUBLIC KEY)",
        ),
        Error::Malformed { .. } | Error::BadSessionId => {
            Failure::failed(what, "check that the endpoint is a server of this protocol")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do_about_them() {
        let target = Target {
            endpoints: vec!["a:1".into()],
            login: true,
            username: "u".into(),
            password: "p".into(),
            database: "d".into(),
            tls: None,
            server_key: None,
            guessed: false,
        };
        let advice = |status: tonic::Status| {
            explain(&Error::Refused { call: "set", status: Box::new(status) }, &target, None).to_string()
        };
        let full = advice(tonic::Status::resource_exhausted("the disk of node 1 has 16 MiB left"));
        assert!(full.contains("16 MiB left") && full.contains("nothing is wrong with the call"), "{full}");
        let wrong = advice(tonic::Status::invalid_argument("max key length exceeded"));
        assert!(wrong.contains("change the call"), "{wrong}");
        let unloaded = advice(wire::ALREADY_CLOSED.status());
        assert!(unloaded.contains("alhambra database load"), "{unloaded}");
        for text in FORBIDDEN {
            let forbidden = advice(text.status());
            assert!(forbidden.contains("user \"u\"") && forbidden.contains("administrator"), "{forbidden}");
        }
    }
}
