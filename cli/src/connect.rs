//! Flags that every client command shares: where to connect and as whom.
//!
//! A value is looked for in the flag, then in `ALHAMBRA_...`, then in `IMMUDB_...`, then in the default.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use alhambra_client::Tls;
use clap::error::{ContextKind, ContextValue};

use crate::failure::{Failure, Kind, OrFail};
use crate::output::Output;

/// The three nodes of a demo; whichever answers first serves.
const DEFAULT_ENDPOINTS: &str = "127.0.0.1:3322,127.0.0.1:3332,127.0.0.1:3342";
const DEFAULT_USERNAME: &str = "immudb";
const DEFAULT_PASSWORD: &str = "immudb";
const DEFAULT_DATABASE: &str = "defaultdb";

/// Where to connect, and how to show the answer.
#[derive(Debug, clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub connect: Connect,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// What those are told who call `login`, `logout` or `use` outside the prompt, where they are no commands.
pub fn no_session(wrong: &clap::Error) -> Option<Failure> {
    let word = match wrong.get(ContextKind::InvalidSubcommand)? {
        ContextValue::String(word) => word.as_str(),
        _ => return None,
    };
    ["login", "logout", "use"].contains(&word).then(|| Failure::new(
        Kind::Usage,
        "there is no session between commands: each logs in by itself",
        "give it --username, --password and --database, or set ALHAMBRA_USERNAME, ALHAMBRA_PASSWORD and ALHAMBRA_DATABASE; \
         in `alhambra shell` there are login, logout and use",
    ))
}

/// Where to connect and as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Connect {
    /// Nodes to talk to, in the order in which they are tried [default: 127.0.0.1:3322,127.0.0.1:3332,127.0.0.1:3342]
    #[arg(long, value_name = "HOST:PORT,...", env = "ALHAMBRA_ENDPOINT")]
    endpoint: Option<String>,
    /// User [default: immudb]
    #[arg(long, value_name = "NAME", env = "ALHAMBRA_USERNAME")]
    username: Option<String>,
    /// Password; better in the environment than on the command line, which others can see [default: immudb]
    #[arg(long, value_name = "TEXT", env = "ALHAMBRA_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Do not log in: the server runs with authentication off, or in maintenance mode
    #[arg(long, env = "ALHAMBRA_NO_LOGIN")]
    no_login: bool,
    /// Database [default: defaultdb]
    #[arg(long, value_name = "NAME", env = "ALHAMBRA_DATABASE")]
    database: Option<String>,
    /// Encrypt connections, with a server that somebody vouches for whom this system trusts; implied by the flags below
    #[arg(long, env = "ALHAMBRA_TLS")]
    tls: bool,
    /// File (PEM) of those who vouch for the server, instead of those whom this system trusts
    #[arg(long, value_name = "FILE", env = "ALHAMBRA_CACERT")]
    cacert: Option<PathBuf>,
    /// Name in the server's certificate, when it is not the host of the endpoint
    #[arg(long, value_name = "NAME", env = "ALHAMBRA_SERVERNAME")]
    servername: Option<String>,
    /// File (PEM) of a certificate to show to the server
    #[arg(long, value_name = "FILE", env = "ALHAMBRA_CERTIFICATE", requires = "pkey")]
    certificate: Option<PathBuf>,
    /// File (PEM) of its key
    #[arg(long, value_name = "FILE", env = "ALHAMBRA_PKEY", requires = "certificate")]
    pkey: Option<PathBuf>,
    /// File (PEM) of the public key with which the server signs its states; states that it did not sign are refused then
    #[arg(long, value_name = "FILE", env = "ALHAMBRA_SERVER_SIGNING_PUB_KEY")]
    server_signing_pub_key: Option<PathBuf>,
}

/// What the flags and the environment come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port` of each node, at least one.
    pub endpoints: Vec<String>,
    /// Whether to log in.
    pub login: bool,
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// Database.
    pub database: String,
    /// How connections are encrypted; none for plain ones.
    pub tls: Option<Tls>,
    /// The public key (PEM) of the server's signatures, when they are asked for.
    pub server_key: Option<String>,
    /// Nobody said which endpoints; a demo's are tried.
    pub guessed: bool,
}

impl Connect {
    /// Resolves flags and environment; endpoints that are not `host:port` are refused.
    pub fn target(&self) -> Result<Target, Failure> {
        self.resolve(|name| std::env::var_os(name))
    }

    /// As [`Self::target`], for what is asked in the name of a user only.
    pub fn user_target(&self) -> Result<Target, Failure> {
        if self.no_login {
            return Err(Failure::new(
                Kind::Usage,
                "this command needs a login",
                "leave --no-login out, or take another command: `alhambra info --no-login` shows the server",
            )
            .for_want_of_login());
        }
        self.target()
    }

    fn resolve(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Target, Failure> {
        let said = |given: &Option<String>, name: &str| {
            let fallback = || variable(&format!("IMMUDB_{name}")).and_then(|value| value.into_string().ok());
            given.clone().or_else(fallback)
        };
        let pick = |given, name: &str, default: &str| said(given, name).unwrap_or_else(|| default.to_owned());
        let endpoints = said(&self.endpoint, "ENDPOINT");
        let guessed = endpoints.is_none();
        let endpoints = endpoints.unwrap_or_else(|| DEFAULT_ENDPOINTS.to_owned());
        let endpoints: Vec<String> =
            endpoints.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if endpoints.is_empty() {
            return Err(Failure::new(Kind::Usage, "no endpoint was given", "name at least one: --endpoint HOST:PORT"));
        }
        if let Some(wrong) = endpoints.iter().find(|endpoint| !is_host_and_port(endpoint)) {
            return Err(Failure::new(
                Kind::Usage,
                format!("{wrong:?} is not an endpoint"),
                "write it as HOST:PORT, for example 127.0.0.1:3322; several with commas between",
            ));
        }
        Ok(Target {
            endpoints,
            login: !self.no_login,
            username: pick(&self.username, "USERNAME", DEFAULT_USERNAME),
            password: pick(&self.password, "PASSWORD", DEFAULT_PASSWORD),
            database: pick(&self.database, "DATABASE", DEFAULT_DATABASE),
            tls: self.tls()?,
            server_key: self.server_signing_pub_key.as_deref().map(read_key).transpose()?,
            guessed,
        })
    }

    /// The flags about encryption and signatures, as they would be written.
    pub fn tls_flags(&self) -> Vec<String> {
        let path =
            |flag: &str, path: &Option<PathBuf>| path.as_ref().map(|path| format!("--{flag}={}", path.display()));
        let mut flags: Vec<String> = [
            path("cacert", &self.cacert),
            self.servername.as_ref().map(|name| format!("--servername={name}")),
            path("certificate", &self.certificate),
            path("pkey", &self.pkey),
            path("server-signing-pub-key", &self.server_signing_pub_key),
        ]
        .into_iter()
        .flatten()
        .collect();
        if self.tls {
            flags.push("--tls".to_owned());
        }
        flags
    }

    fn tls(&self) -> Result<Option<Tls>, Failure> {
        let named = self.cacert.is_some() || self.servername.is_some() || self.certificate.is_some();
        if !self.tls && !named {
            return Ok(None);
        }
        let read = |path: &PathBuf| {
            std::fs::read(path).or_fail(format_args!("reading {}", path.display()), "name a file that can be read")
        };
        Ok(Some(Tls {
            authorities: self.cacert.as_ref().map(read).transpose()?,
            server_name: self.servername.clone(),
            identity: match (&self.certificate, &self.pkey) {
                (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                _ => None,
            },
        }))
    }
}

fn read_key(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).or_fail(
        format_args!("reading {}", path.display()),
        "name the file with the server's public key: `openssl ec -in KEY -pubout` makes it from the one that signs",
    )
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// Where trusted states are kept.
#[derive(Clone, Debug, clap::Args)]
pub struct StateDir {
    /// Folder of the trusted states, one file per cluster and database [default: alhambra below the user's data
    /// folder, $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "DIR", env = "ALHAMBRA_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl StateDir {
    /// The folder, given or found; an error when there is no home folder to put it in.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(given) = &self.state_dir {
            return Ok(given.clone());
        }
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = set("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| home.join(".local").join("share")));
        data.map(|folder| folder.join("alhambra")).ok_or_else(|| {
            Failure::new(
                Kind::Usage,
                "there is no home folder to keep trusted states in",
                "name a folder that stays: --state-dir DIR",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Connect {
        Connect {
            endpoint: None,
            username: None,
            password: None,
            no_login: false,
            database: None,
            tls: false,
            cacert: None,
            servername: None,
            certificate: None,
            pkey: None,
            server_signing_pub_key: None,
        }
    }

    #[test]
    fn a_flag_wins_over_the_old_variables_and_they_over_the_default() {
        let old = |name: &str| (name == "IMMUDB_USERNAME").then(|| OsString::from("ada"));
        let found = nothing().resolve(old).unwrap();
        assert_eq!(found.username, "ada");
        assert_eq!(found.password, "immudb");
        assert_eq!(found.endpoints, ["127.0.0.1:3322", "127.0.0.1:3332", "127.0.0.1:3342"]);
        assert!(found.guessed);
        let given = Connect { username: Some("bob".to_owned()), ..nothing() };
        assert_eq!(given.resolve(old).unwrap().username, "bob");
    }

    #[test]
    fn endpoints_are_host_and_port() {
        let with = |text: &str| Connect { endpoint: Some(text.to_owned()), ..nothing() }.resolve(|_| None);
        let given = with("a:1, [::1]:2,").unwrap();
        assert_eq!((given.endpoints, given.guessed), (vec!["a:1".to_owned(), "[::1]:2".to_owned()], false));
        for wrong in ["", ",", "localhost", "localhost:", ":3322", "a:0", "a:99999", "http://a:1", "a b:1"] {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
    }
}
