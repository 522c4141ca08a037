//! `demo.json`: what a demo runs, for scripts; and the guard against starting another shape of demo on its folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::demo::plan::NodePlan;
use crate::failure::{Failure, Kind, OrFail};

const FILE_NAME: &str = "demo.json";

/// One running demo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The cluster's uuid; empty before the cluster has formed.
    pub uuid: String,
    /// Folder of all nodes, absolute.
    pub dir: PathBuf,
    /// gRPC port of node 1.
    pub base_port: u16,
    /// User to log in as.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Database that exists from the start.
    pub database: String,
    /// Process id of the demo itself.
    pub pid: u32,
    /// In the order of their numbers.
    pub nodes: Vec<NodeRecord>,
}

/// One node of a demo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// From 1.
    pub node: u16,
    /// `host:port` for clients.
    pub endpoint: String,
    /// gRPC port.
    pub port: u16,
    /// Port for the other nodes.
    pub peer_port: u16,
    /// Port of metrics and health.
    pub metrics_port: u16,
    /// Port of REST and its documentation.
    #[serde(default)]
    pub web_port: u16,
    /// Data folder, absolute.
    pub dir: PathBuf,
    /// Log file, absolute.
    pub log: PathBuf,
    /// Process id; 0 while it is not running.
    pub pid: u32,
}

impl Record {
    /// The record of a demo that is about to start. A folder that holds a demo of another shape is refused, because
    /// its nodes know each other by their ports.
    pub fn prepare(dir: &Path, base_port: u16, nodes: &[NodePlan], login: [&str; 3]) -> Result<Record, Failure> {
        fs::create_dir_all(dir)
            .or_fail(format_args!("creating {}", dir.display()), "choose a folder you may write to with --dir")?;
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if let Some(old) = Record::load(dir)?
            && (old.base_port != base_port || old.nodes.len() != nodes.len())
        {
            return Err(Failure::new(
                Kind::Usage,
                format!(
                    "{} holds a demo of {} nodes with base port {}, not of {} with {base_port}",
                    dir.display(),
                    old.nodes.len(),
                    old.base_port,
                    nodes.len()
                ),
                format!(
                    "resume it with --nodes {} --base-port {}, or choose another folder with --dir",
                    old.nodes.len(),
                    old.base_port
                ),
            ));
        }
        let [username, password, database] = login.map(str::to_owned);
        let nodes = nodes.iter().map(|node| NodeRecord {
            node: node.number,
            endpoint: node.grpc(),
            port: node.grpc_port,
            peer_port: node.peer_port,
            metrics_port: node.metrics_port,
            web_port: node.web_port,
            dir: absolute(&node.dir),
            log: absolute(&node.log),
            pid: 0,
        });
        Ok(Record {
            uuid: String::new(),
            dir: absolute(dir),
            base_port,
            username,
            password,
            database,
            pid: std::process::id(),
            nodes: nodes.collect(),
        })
    }

    /// Notes the process of a node; 0 when it has none.
    pub fn set_process(&mut self, number: u16, process_id: u32) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.node == number) {
            node.pid = process_id;
        }
    }

    /// Writes `demo.json` so that a reader sees the old or the new record, never half of one.
    pub fn save(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE_NAME);
        let fresh = dir.join(".demo.json.new");
        let mut json = serde_json::to_vec_pretty(self).or_fail("encoding the demo's record", "report this")?;
        json.push(b'\n');
        fs::write(&fresh, json)
            .and_then(|()| fs::rename(&fresh, &path))
            .or_fail(format_args!("writing {}", path.display()), "make room, or choose another folder with --dir")
    }

    fn load(dir: &Path) -> Result<Option<Record>, Failure> {
        let path = dir.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).or_fail(format_args!("reading {}", path.display()), "make it readable"),
        };
        serde_json::from_slice(&text).map(Some).or_fail(
            format_args!("{} is not a demo's record", path.display()),
            "choose another folder with --dir; or remove that file when the nodes below it are to be kept",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan::{BASE_PORT, plan};

    const LOGIN: [&str; 3] = ["immudb", "immudb", "defaultdb"];

    #[test]
    fn a_folder_keeps_the_shape_of_its_demo() {
        let dir = tempfile::tempdir().unwrap();
        let three = plan(dir.path(), 3, BASE_PORT).unwrap();
        let mut record = Record::prepare(dir.path(), BASE_PORT, &three, LOGIN).unwrap();
        record.set_process(2, 77);
        record.save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path()).unwrap(), Some(record));

        assert!(Record::prepare(dir.path(), BASE_PORT, &three, LOGIN).is_ok(), "resuming");
        let five = plan(dir.path(), 5, BASE_PORT).unwrap();
        let said = Record::prepare(dir.path(), BASE_PORT, &five, LOGIN).unwrap_err().to_string();
        assert!(said.contains("--nodes 3 --base-port 3322"), "{said}");
        let moved = plan(dir.path(), 3, 4000).unwrap();
        assert!(Record::prepare(dir.path(), 4000, &moved, LOGIN).is_err());
    }

    #[test]
    fn a_foreign_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "{}").unwrap();
        let one = plan(dir.path(), 1, BASE_PORT).unwrap();
        assert!(Record::prepare(dir.path(), BASE_PORT, &one, LOGIN).is_err());
        assert_eq!(fs::read(dir.path().join(FILE_NAME)).unwrap(), b"{}");
    }
}
