//! Finds out before anything starts whether the ports are free, and if not, who has them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use crate::demo::plan::NodePlan;
use crate::failure::Failure;

/// Refuses when a port of the plan is taken, naming the port and, where the system tells, the process that has it.
pub fn check_free(nodes: &[NodePlan]) -> Result<(), Failure> {
    for node in nodes {
        for (port, purpose) in node.ports() {
            // The listener is closed again at once; a listening socket that was never connected leaves no wait state.
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return Err(refusal(port, purpose, node.number, &error));
            }
        }
    }
    Ok(())
}

fn refusal(port: u16, purpose: &str, number: u16, error: &io::Error) -> Failure {
    if error.kind() != io::ErrorKind::AddrInUse {
        return Failure::failed(
            format!("cannot listen on port {port} ({purpose}, node {number}): {error}"),
            "choose other ports with --base-port",
        );
    }
    let owner = owner(port)
        .map_or_else(|| "another process".to_owned(), |owner| format!("process {} ({})", owner.process_id, owner.name));
    Failure::failed(
        format!("port {port} ({purpose}, node {number}) is in use by {owner}; nothing was started"),
        "stop that process, or choose other ports with --base-port",
    )
}

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process id.
    pub process_id: u32,
    /// Its short name.
    pub name: String,
}

/// The process that listens on `port`, as far as the `/proc` of Linux shows it to this user.
pub fn owner(port: u16) -> Option<Owner> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|table| listening_inode(&table, port))?;
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let process_id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(entry.path().join("fd")).ok()?.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target.to_str() == Some(wanted.as_str()))
        });
        let name = || fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        holds.then(|| Owner { process_id, name: name() })
    })
}

/// The inode of the socket that listens (state 0A) on `port`, from the text of `/proc/net/tcp`.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == "0A";
        (listens && u16::from_str_radix(local_port, 16) == Ok(port)).then(|| fields.get(9)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::demo::plan;

    #[test]
    fn a_taken_port_is_named_with_its_owner() {
        // A port of the range that a demo of one node can use, taken by this very process.
        let (listener, base_port) = (20_000..21_000)
            .find_map(|port| Some((TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?, port)))
            .unwrap();
        let nodes = plan::plan(Path::new("d"), 1, base_port).unwrap();
        let said = check_free(&nodes).unwrap_err().to_string();
        assert!(said.contains(&format!("port {base_port} (clients, node 1) is in use")), "{said}");
        if Path::new("/proc/net/tcp").exists() {
            let owner = owner(base_port).unwrap();
            assert_eq!(owner.process_id, std::process::id());
            assert!(said.contains(&format!("process {} ({})", owner.process_id, owner.name)), "{said}");
        }
        drop(listener);
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:0CFA 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n   \
                     1: 0100007F:0CFA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n";
        assert_eq!(listening_inode(table, 3322), Some(22));
        assert_eq!(listening_inode(table, 3323), None);
    }
}
