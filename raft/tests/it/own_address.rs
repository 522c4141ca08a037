//! Addresses that a node of a test has for itself, so that it finds its port free when it starts again.
//!
//! A port of `127.0.0.1` that was let go is given to whoever asks for any, which are all other nodes of all tests here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// A loopback address, and a port that is free there. Nobody else in this process is given the address, and other processes mostly have
/// others. It is `127.0.0.1` on a system whose loopback is that address alone.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes with neighbouring ids begin far enough apart for all that one asks for. 127.0 is left to those who listen where people expect them, 127.255 has an address for broadcasts.
    let n = std::process::id().wrapping_mul(4099).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let [_, a, b, c] = n.to_be_bytes();
    let own = Ipv4Addr::new(127, a % 254 + 1, b, c);
    let bound = TcpListener::bind((IpAddr::V4(own), 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .expect("a port of the loopback is free");
    bound.local_addr().expect("a socket that is bound has an address")
}

#[test]
fn addresses_differ_and_can_be_listened_on() {
    let addresses: Vec<_> = (0..600).map(|_| own_address()).collect();
    assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() != 0));
    assert!(addresses.iter().all(|address| TcpListener::bind(address).is_ok()));
    if TcpListener::bind("127.1.2.3:0").is_ok() {
        let hosts: std::collections::BTreeSet<_> = addresses.iter().map(SocketAddr::ip).collect();
        assert_eq!(hosts.len(), 600);
    }
}
