//! Which of our processes holds the other end of a loopback connection. Linux only, from `/proc`.

use std::fs;
use std::net::SocketAddr;

/// The process among `candidates` that has a TCP socket bound to `local` (IPv4).
pub fn of(local: SocketAddr, candidates: impl IntoIterator<Item = u32>) -> Option<u32> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = inode(&table, local)?;
    let wanted = format!("socket:[{inode}]");
    candidates.into_iter().find(|pid| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    })
}

/// The inode of the socket with this local address in the text of `/proc/net/tcp`.
fn inode(table: &str, local: SocketAddr) -> Option<&str> {
    let SocketAddr::V4(local) = local else { return None };
    // The kernel prints the address as the number that lies in memory.
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(local.ip().octets()), local.port());
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == wanted).then(|| words.nth(7)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn finds_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let local = near.local_addr().unwrap();
        assert_eq!(of(local, [1_u32 << 30, std::process::id()]), Some(std::process::id()));
        assert_eq!(of(local, [1_u32 << 30]), None);
        drop(listener);
        assert_eq!(of("127.0.0.1:1".parse().unwrap(), [std::process::id()]), None);
    }
}
