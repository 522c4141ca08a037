//! Clients that are official SDKs in processes of their own (`chaos-tests/workload`), each told line by line what to do.
//!
//! A program answers every line of JSON with one. `open` connects to a node; `set` and `get` are one call of the SDK.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Answer, Client};
use crate::history::Ending;
use crate::process::cluster::{DATABASE, PASSWORD, USER};

/// Fetching and building packages takes this long at most.
const PREPARED_WITHIN: Duration = Duration::from_secs(400);
/// A program that was told to end does so within this.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A program ready to be started.
#[derive(Clone, Debug)]
pub struct Program {
    /// Kind of client, for the record.
    pub kind: &'static str,
    command: Vec<PathBuf>,
}

/// The top of the repository, where the programs are.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn cache() -> Result<PathBuf, String> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = home.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("alhambra").join("chaos");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

async fn call(command: &mut Command) -> Result<(), String> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(PREPARED_WITHIN, running).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("not done within {PREPARED_WITHIN:?}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(said.chars().take(300).collect())
}

/// The program of the Python SDK, with its packages; the reason when this machine cannot have it.
pub async fn python() -> Result<Program, String> {
    let venv =
        std::env::var_os("VENV").map_or_else(|| cache().map(|cache| cache.join("venv")), |venv| Ok(venv.into()))?;
    call(Command::new(top().join("scripts/python-env.sh")).arg(&venv)).await?;
    let program = top().join("chaos-tests/workload/python/worker.py");
    Ok(Program { kind: "python", command: vec![venv.join("bin/python"), program] })
}

/// The program of the Go SDK, built with the versions that `conformance` uses; the reason when this machine cannot have it.
pub async fn go() -> Result<Program, String> {
    let program = cache()?.join("worker-go");
    let versions = top().join("conformance/go/go.mod");
    let build = ["build", "-buildvcs=false"];
    let mut command = Command::new("go");
    command.args(build).arg(format!("-modfile={}", versions.display())).arg("-o").arg(&program).arg(".");
    command.current_dir(top().join("chaos-tests/workload/go")).env("CGO_ENABLED", "0");
    call(&mut command).await?;
    Ok(Program { kind: "go", command: vec![program] })
}

/// One client.
pub struct Sdk {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    endpoints: Vec<String>,
    at: usize,
    open: bool,
    /// What the SDK said last that it trusts.
    trusted: Option<(u64, Vec<u8>)>,
}

/// What an answer says that the SDK trusts.
fn trusted(answer: &Value) -> Option<(u64, Vec<u8>)> {
    let trusted = &answer["trusted"];
    let hex = trusted["alh"].as_str()?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some((trusted["tx"].as_u64()?, hex.chunks(2).map(byte).collect::<Option<_>>()?))
}

impl Sdk {
    /// Starts a program, in a folder of its own for whatever its SDK keeps.
    pub fn start(program: &Program, folder: &Path, endpoints: Vec<String>, first: usize) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let failed = |error: std::io::Error| format!("{}: {error}", program.kind);
        let log = fs::File::create(folder.join("log")).map_err(failed)?;
        let [first_word, arguments @ ..] = &program.command[..] else { return Err("no program".to_owned()) };
        let mut child = Command::new(first_word)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{}: no pipes", program.kind));
        };
        let at = first % endpoints.len().max(1);
        Ok(Self { child, input, output: BufReader::new(output).lines(), endpoints, at, open: false, trusted: None })
    }

    async fn ask(&mut self, request: Value) -> Result<Value, String> {
        let line = format!("{request}\n");
        self.input.write_all(line.as_bytes()).await.map_err(|error| format!("the program is gone: {error}"))?;
        let line = self.output.next_line().await.map_err(|error| format!("the program is gone: {error}"))?;
        let line = line.ok_or("the program has ended")?;
        serde_json::from_str(&line).map_err(|_| format!("no line of JSON: {line}"))
    }

    /// Makes the call on an open connection; nothing when there was none and none could be made.
    async fn carry_out(&mut self, request: Value) -> Result<Option<Value>, String> {
        if !self.open {
            let endpoint = &self.endpoints[self.at];
            let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, ""));
            let open = json!({
                "op": "open", "host": host, "port": port.parse::<u16>().unwrap_or(0),
                "user": USER, "password": PASSWORD, "database": DATABASE,
            });
            let answer = self.ask(open).await?;
            match answer["result"].as_str() {
                Some("ok") => self.open = true,
                Some("wrong") => return Err(answer["text"].to_string()),
                _ => {
                    self.at = (self.at + 1) % self.endpoints.len();
                    return Ok(None);
                }
            }
        }
        let answer = self.ask(request).await?;
        match answer["result"].as_str() {
            Some("ok" | "found") => {
                if let Some(now) = trusted(&answer) {
                    let before = self.trusted.as_ref().map_or(0, |(tx, _)| *tx);
                    if now.0 < before {
                        return Err(format!("V2: the trusted state moved from {before} back to {}", now.0));
                    }
                    self.trusted = Some(now);
                }
                Ok(Some(answer))
            }
            Some("refused" | "unknown") => {
                self.open = false;
                self.at = (self.at + 1) % self.endpoints.len();
                Ok(Some(answer))
            }
            _ => Err(answer["text"].to_string()),
        }
    }
}

impl Client for Sdk {
    fn set<'a>(&'a mut self, key: &'a str, value: &'a str, verified: bool) -> BoxFuture<'a, Answer> {
        async move {
            let request = json!({ "op": "set", "key": key, "value": value, "verified": verified });
            match self.carry_out(request).await {
                Ok(None) => Answer::Written(Ending::Refused),
                Ok(Some(answer)) => match (answer["result"].as_str(), answer["tx"].as_u64()) {
                    (Some("ok"), Some(tx)) => Answer::Written(Ending::Acknowledged(tx)),
                    (Some("refused"), _) => Answer::Written(Ending::Refused),
                    (Some("unknown"), _) => Answer::Written(Ending::Unknown),
                    _ => Answer::Wrong(format!("an answer to set without sense: {answer}")),
                },
                Err(text) => Answer::Wrong(text),
            }
        }
        .boxed()
    }

    fn get<'a>(&'a mut self, key: &'a str, verified: bool) -> BoxFuture<'a, Answer> {
        async move {
            match self.carry_out(json!({ "op": "get", "key": key, "verified": verified })).await {
                Ok(Some(answer)) if answer["result"] == "found" => {
                    Answer::Found(answer["value"].as_str().map(|value| value.as_bytes().to_vec()))
                }
                Ok(_) => Answer::NotRead,
                Err(text) => Answer::Wrong(text),
            }
        }
        .boxed()
    }

    fn node(&self) -> u32 {
        u32::try_from(self.at + 1).unwrap_or(0)
    }

    fn trusted(&self) -> Option<(u64, Vec<u8>)> {
        self.trusted.clone()
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            drop(self.input);
            if tokio::time::timeout(ENDS_WITHIN, self.child.wait()).await.is_err() {
                // It had its time; the run is over and nothing depends on it any more.
                let _ = self.child.kill().await;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_sdk_trusts_is_read_from_its_answer() {
        let said = |alh: &str| trusted(&json!({ "result": "ok", "trusted": { "tx": 7, "alh": alh } }));
        assert_eq!(said("0aff"), Some((7, vec![0x0a, 0xff])));
        assert_eq!([said("0x"), trusted(&json!({ "result": "ok" }))], [None, None]);
    }
}
