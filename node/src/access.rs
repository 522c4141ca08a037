//! Who is served when nobody has to log in: authentication off, and maintenance mode. Only this module decides that; the gate and
//! [`crate::service`] ask it.
//!
//! - Authentication on: sessions and tokens tell who calls. Nothing below applies.
//! - Off: whoever calls is nobody, who may do everything in the default database and nothing elsewhere. Sessions and tokens count for
//!   nothing, so that a call never ends up in another database than the one that it was meant for. Only as long as there are no other
//!   databases and users: they were made for somebody, so authentication protects them.
//! - Maintenance: UseDatabase gives nobody a token for any database ([`Kind::Anonymous`]); calls of a fixed list may be made with it.
//!
//! Off and in maintenance only callers on this machine are served, unless `devmode` is on. A node takes what it has itself decided to
//! take: an anonymous token is none where authentication is on, whoever has signed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_proto::code::text;
use alhambra_raft::meta::{DEFAULT_DATABASE, User};
use tokio::sync::watch;

use crate::auth::{EVERY_DATABASE, permission};
use crate::claim::Kind;
use crate::config::Config;
use crate::context::Caller;
use crate::error::{Error, Result};
use crate::method::{self, Method, Need};
use crate::throttle::Source;

/// Whether callers log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    On,
    Off,
    Maintenance,
}

/// Databases and users that are not there from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Nobody has looked yet.
    Unknown,
    /// There are none.
    None,
    /// There were none when the node began to serve.
    Came,
    /// There were some.
    Found,
}

/// Decides who is served, and which calls, when nobody logs in.
#[derive(Debug)]
pub struct Access {
    mode: Mode,
    remote: bool,
    /// Who calls without a login.
    nobody: Option<Arc<User>>,
    others: watch::Sender<Others>,
    /// What `systemdb` says here was confirmed by a quorum since this node started.
    confirmed: AtomicBool,
}

impl Access {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let mode = match (config.auth, config.maintenance) {
            (true, _) => Mode::On,
            (false, false) => Mode::Off,
            (false, true) => Mode::Maintenance,
        };
        let permission = match mode {
            Mode::On => None,
            Mode::Off => Some((DEFAULT_DATABASE, permission::ADMIN)),
            Mode::Maintenance => Some((EVERY_DATABASE, permission::SYSADMIN)),
        };
        let nobody = permission.map(|(database, number)| {
            Arc::new(User {
                // No user has this name.
                name: String::new(),
                password: String::new(),
                permissions: [(database.to_owned(), number)].into(),
                sql_privileges: Default::default(),
                active: true,
                created_by: String::new(),
                created_at_ms: 0,
            })
        });
        Self {
            mode,
            remote: config.devmode,
            nobody,
            others: watch::Sender::new(Others::Unknown),
            confirmed: AtomicBool::new(false),
        }
    }

    /// Says in the log what whoever runs this node should know.
    pub fn warn(&self) {
        let who = if self.remote { "everybody who reaches its ports" } else { "every program on this machine" };
        match self.mode {
            Mode::On => {}
            Mode::Off => {
                tracing::warn!("authentication is off: {who} may read, write and administrate {DEFAULT_DATABASE}")
            }
            Mode::Maintenance => {
                tracing::warn!(
                    "maintenance mode: {who} may read every database and replicate into it; nobody can log in"
                );
            }
        }
    }

    /// Refuses callers who are not served at all.
    pub fn serves(&self, source: Source) -> Result<()> {
        if !self.is_local_only() || source.is_local() { Ok(()) } else { Err(text::LOCAL_ONLY.into()) }
    }

    /// Whether only programs of this machine are served.
    pub fn is_local_only(&self) -> bool {
        self.mode != Mode::On && !self.remote
    }

    /// Refuses calls that need authentication, or are not made in maintenance mode.
    pub fn allows(&self, method: &Method) -> Result<()> {
        if self.mode == Mode::On {
            return Ok(());
        }
        let refusal = match (self.mode, *method) {
            (_, method::OPEN_SESSION | method::LOGIN | method::LOGOUT | method::AUTHORIZATION_OPEN_SESSION) => {
                text::AUTH_DISABLED
            }
            (_, method::DATABASE_LIST | method::DATABASE_LIST_V2) => text::ONLY_WITH_AUTH,
            (Mode::Maintenance, Method { maintenance: false, need: Need::Database(_) | Need::Administration, .. }) => {
                text::MAINTENANCE_MODE
            }
            (Mode::Off, method::CHANGE_PERMISSION | method::CHANGE_SQL_PRIVILEGES) => text::NOT_LOGGED_IN,
            (
                Mode::Off,
                method::USE_DATABASE
                | method::LIST_USERS
                | method::CREATE_USER
                | method::CHANGE_PASSWORD
                | method::SET_ACTIVE_USER,
            ) => text::ONLY_WITH_AUTH,
            (Mode::Off, Method { need: Need::Administration, .. }) => text::AUTH_MUST_BE_ON,
            (Mode::Off, Method { need: Need::Database(_), .. }) => return self.is_unprotected(),
            _ => return Ok(()),
        };
        Err(refusal.into())
    }

    /// Whether there is nothing that was meant to be protected.
    fn is_unprotected(&self) -> Result<()> {
        match *self.others.borrow() {
            Others::Unknown => Err(Error::Starting { what: "systemdb" }),
            Others::None => Ok(()),
            Others::Came | Others::Found => Err(Error::AuthNeeded),
        }
    }

    /// Whether claims of this kind tell who calls.
    pub const fn takes(&self, kind: Kind) -> bool {
        match kind {
            Kind::Session | Kind::Token => matches!(self.mode, Mode::On),
            Kind::Anonymous => matches!(self.mode, Mode::Maintenance),
        }
    }

    /// Who calls without a login, when nobody has to log in.
    pub const fn nobody(&self) -> Option<&Arc<User>> {
        self.nobody.as_ref()
    }

    /// Whether this is who calls without a login.
    pub fn is_nobody(&self, user: &User) -> bool {
        self.nobody.as_deref() == Some(user)
    }

    /// Who makes a call that says nothing about it.
    pub fn stranger(&self) -> Result<Caller> {
        match (self.mode, &self.nobody) {
            (Mode::Off, Some(nobody)) => {
                Ok(Caller { user: nobody.clone(), database: Some(DEFAULT_DATABASE.into()), session: None })
            }
            (Mode::Maintenance, _) => Err(text::SELECT_DATABASE_FIRST.into()),
            (Mode::On | Mode::Off, _) => Err(text::NOT_LOGGED_IN.into()),
        }
    }

    /// Whether it matters here what other databases and users there are.
    pub fn minds_others(&self) -> bool {
        self.mode == Mode::Off
    }

    /// `systemdb` has here, from now on, at least what it had anywhere when this node started.
    pub fn confirm(&self) {
        self.confirmed.store(true, Ordering::Release);
    }

    /// Whether that is so. Before it, nobody knows what there is: another node may have made it while this one was down.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Takes note of whether there are other databases or users. The first time decides whether the node goes on.
    pub fn note_others(&self, some: bool) {
        self.others.send_if_modified(|others| {
            let now = match (*others, some) {
                (Others::Found, _) | (Others::Unknown, true) => Others::Found,
                (_, false) => Others::None,
                (Others::None | Others::Came, true) => Others::Came,
            };
            if now == Others::Came && *others != now {
                tracing::error!("authentication is off, but there are other databases or users now: calls are refused");
            }
            std::mem::replace(others, now) != now
        });
    }

    /// Ends when it is known whether there is anything to protect, where that matters.
    pub async fn known(&self) {
        if self.minds_others() {
            // The sender lives as long as `self`.
            _ = self.others.subscribe().wait_for(|others| *others != Others::Unknown).await;
        }
    }

    /// Ends when the node must not go on without authentication.
    pub async fn found_others(&self) {
        // The sender lives as long as `self`.
        _ = self.others.subscribe().wait_for(|others| *others == Others::Found).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(auth: bool, maintenance: bool, devmode: bool) -> Access {
        let mut config = Config::default();
        (config.auth, config.maintenance, config.devmode) = (auth, maintenance, devmode);
        Access::new(&config)
    }

    #[test]
    fn without_authentication_only_this_machine_is_served() {
        let local = ["127.0.0.1:5", "127.8.9.10:5", "[::1]:5", "[::ffff:127.0.0.1]:5", "[0:0:0:0:0:ffff:7f00:1]:5"];
        let elsewhere = [
            "10.0.0.1:5",
            "128.0.0.1:5",
            "0.0.0.0:5",
            "[::]:5",
            // In the network of 64 bits of the loopback address, and not it.
            "[::2]:5",
            "[::127.0.0.1]:5",
            "[::ffff:10.0.0.1]:5",
            "[fe80::1%lo]:5",
            "[2001:db8::1]:5",
            "localhost:5",
            "",
        ];
        for (off, maintenance) in [(true, false), (true, true)] {
            let (closed, open) = (access(!off, maintenance, false), access(!off, maintenance, true));
            for peer in local {
                closed.serves(Source::of(peer)).unwrap_or_else(|error| panic!("{peer}: {error}"));
            }
            for peer in elsewhere {
                let refusal = closed.serves(Source::of(peer)).expect_err(peer);
                assert!(matches!(refusal, Error::Wire(error) if error == text::LOCAL_ONLY), "{peer}: {refusal}");
                open.serves(Source::of(peer)).unwrap();
            }
            closed.serves(Source::default()).expect_err("where it comes from is not known");
        }
        for peer in local.into_iter().chain(elsewhere) {
            access(true, false, false).serves(Source::of(peer)).unwrap();
        }
    }

    #[test]
    fn a_node_takes_only_its_own_kind_of_claims() {
        for (auth, maintenance, takes) in
            [(true, false, [true, true, false]), (false, false, [false; 3]), (false, true, [false, false, true])]
        {
            for devmode in [false, true] {
                let access = access(auth, maintenance, devmode);
                let taken = [Kind::Session, Kind::Token, Kind::Anonymous].map(|kind| access.takes(kind));
                assert_eq!(taken, takes, "auth {auth}, maintenance {maintenance}");
                assert_eq!(access.nobody().is_none(), auth);
            }
        }
    }

    #[test]
    fn what_was_protected_is_not_laid_open() {
        let refused = |access: &Access| access.allows(&method::GET).is_err();
        let off = access(false, false, false);
        assert!(refused(&off), "nobody has looked yet");
        off.note_others(false);
        assert!(!refused(&off));
        off.note_others(true);
        assert!(refused(&off) && *off.others.borrow() == Others::Came, "the node goes on");
        off.note_others(false);
        assert!(!refused(&off));

        let off = access(false, false, false);
        off.note_others(true);
        assert!(refused(&off) && *off.others.borrow() == Others::Found, "the node does not go on");
        assert!(!refused(&access(false, true, false)), "maintenance is for what there is");
        assert!(!refused(&access(true, false, false)));
    }
}
