//! Failed logins are made slow: for whoever fails, not for the user whose name is tried.
//!
//! Failures are counted in three tables: of a user from an address, from an address, and of a user from anywhere. Beyond the free ones
//! each further failure doubles the time in which nothing more is tried; what comes in that time is refused at once, costs no
//! hash and does not prolong it. What is counted of a user from anywhere only holds up addresses from which that user
//! has failed lately, so that nobody can lock out a user who logs in from elsewhere. A success forgets what its own
//! address has failed.
//!
//! Each node counts by itself. All tables are bounded; the one whose latest failure is longest ago makes room.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits::{
    FAILURES_FORGOTTEN, FAILURES_FREE, FAILURES_FREE_OF_ADDRESS, FAILURES_FREE_OF_USER, FAILURES_KEPT_MAX, LOGIN_DELAY,
    LOGIN_DELAY_MAX, PROVEN_FOR,
};

/// Where a caller is, as far as it matters: one machine may have all addresses of an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    network: Option<IpAddr>,
    is_local: bool,
}

impl Source {
    /// A caller on this address, `host:port` as the connection tells it. Those that cannot be told apart are one.
    pub fn of(peer: &str) -> Self {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let address = address.map(|address| address.to_canonical());
        let network = address.map(|address| match address {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            short => short,
        });
        Self { network, is_local: address.is_some_and(|address| address.is_loopback()) }
    }

    /// Whether the caller is surely on this machine.
    pub const fn is_local(self) -> bool {
        self.is_local
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    latest: Instant,
    /// Nothing is tried before.
    until: Instant,
}

impl Failures {
    fn are_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.until) >= FAILURES_FORGOTTEN
    }
}

/// Failures by something, at most [`FAILURES_KEPT_MAX`].
#[derive(Debug)]
struct Table<K> {
    free: u32,
    failures: HashMap<K, Failures>,
}

impl<K: Hash + Eq + Clone> Table<K> {
    fn new(free: u32) -> Self {
        Self { free, failures: HashMap::new() }
    }

    /// Until when nothing is tried; none when there are no failures, or none that are remembered.
    fn until(&self, key: &K, now: Instant) -> Option<Instant> {
        self.failures.get(key).filter(|failures| !failures.are_forgotten(now)).map(|failures| failures.until)
    }

    fn fail(&mut self, key: K, now: Instant) {
        if self.failures.len() >= FAILURES_KEPT_MAX && !self.failures.contains_key(&key) {
            self.failures.retain(|_, failures| !failures.are_forgotten(now));
            let oldest = self.failures.iter().min_by_key(|(_, failures)| failures.latest).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| self.failures.len() >= FAILURES_KEPT_MAX) {
                self.failures.remove(&oldest);
            }
        }
        let none = Failures { count: 0, latest: now, until: now };
        let failures = self.failures.entry(key).or_insert(none);
        if failures.are_forgotten(now) {
            *failures = none;
        }
        failures.count = failures.count.saturating_add(1);
        failures.latest = now;
        failures.until = now + delay(failures.count.saturating_sub(self.free));
    }

    fn forgive(&mut self, key: &K) {
        let Some(failures) = self.failures.get_mut(key) else { return };
        failures.count = failures.count.saturating_sub(1);
        failures.until = failures.latest + delay(failures.count.saturating_sub(self.free));
        if failures.count == 0 {
            self.failures.remove(key);
        }
    }
}

/// Nothing is tried for so long after this many failures beyond the free ones.
fn delay(beyond: u32) -> Duration {
    match beyond.checked_sub(1) {
        None => Duration::ZERO,
        Some(doubled) => {
            LOGIN_DELAY_MAX.min(LOGIN_DELAY.saturating_mul(1_u32.checked_shl(doubled).unwrap_or(u32::MAX)))
        }
    }
}

#[derive(Debug)]
struct Tables {
    by_both: Table<(String, Source)>,
    by_source: Table<Source>,
    by_user: Table<String>,
    /// When a user gave the right password from an address last, at most [`FAILURES_KEPT_MAX`].
    proven: HashMap<(String, Source), Instant>,
}

/// Counts failed logins.
#[derive(Debug)]
pub struct Throttle(Mutex<Tables>);

impl Default for Throttle {
    fn default() -> Self {
        Self(Mutex::new(Tables {
            by_both: Table::new(FAILURES_FREE),
            by_source: Table::new(FAILURES_FREE_OF_ADDRESS),
            by_user: Table::new(FAILURES_FREE_OF_USER),
            proven: HashMap::new(),
        }))
    }
}

impl Throttle {
    /// Whether a password of this user may be tried from there now; if not, the time until it may.
    pub fn check(&self, user: &str, source: Source) -> Result<(), Duration> {
        let now = Instant::now();
        let tables = self.0.lock();
        let both = (cut(user).to_owned(), source);
        let own = tables.by_both.until(&both, now);
        // Who has not failed with this name is not to blame for the failures of others.
        let of_user = own.and_then(|_| tables.by_user.until(&both.0, now));
        // Nor is who was right from there lately to blame for the address that it shares with others.
        let is_proven = tables.proven.get(&both).is_some_and(|at| now.saturating_duration_since(*at) < PROVEN_FOR);
        let of_source = tables.by_source.until(&source, now).filter(|_| !is_proven);
        let until = [own, of_user, of_source].into_iter().flatten().max();
        match until.map(|until| until.saturating_duration_since(now)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            Some(_) | None => Ok(()),
        }
    }

    /// A password was wrong.
    pub fn failed(&self, user: &str, source: Source) {
        let now = Instant::now();
        let mut tables = self.0.lock();
        tables.by_both.fail((cut(user).to_owned(), source), now);
        tables.by_source.fail(source, now);
        tables.by_user.fail(cut(user).to_owned(), now);
    }

    /// What was counted last as a failure was none, as far as anybody can tell.
    pub fn forgive(&self, user: &str, source: Source) {
        let mut tables = self.0.lock();
        tables.by_both.forgive(&(cut(user).to_owned(), source));
        tables.by_source.forgive(&source);
        tables.by_user.forgive(&cut(user).to_owned());
    }

    /// A password was right.
    pub fn succeeded(&self, user: &str, source: Source) {
        let now = Instant::now();
        let both = (cut(user).to_owned(), source);
        let mut tables = self.0.lock();
        tables.by_source.failures.remove(&source);
        tables.by_both.failures.remove(&both);
        if tables.proven.len() >= FAILURES_KEPT_MAX && !tables.proven.contains_key(&both) {
            tables.proven.retain(|_, at| now.saturating_duration_since(*at) < PROVEN_FOR);
            let oldest = tables.proven.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| tables.proven.len() >= FAILURES_KEPT_MAX) {
                tables.proven.remove(&oldest);
            }
        }
        tables.proven.insert(both, now);
    }
}

/// No user has a longer name; what is longer need not be told apart.
fn cut(user: &str) -> &str {
    let mut end = user.len().min(crate::limits::USER_NAME_LEN_MAX + 1);
    while !user.is_char_boundary(end) {
        end -= 1;
    }
    &user[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u8) -> Source {
        Source::of(&format!("10.0.0.{n}:{}", 40_000 + u16::from(n)))
    }

    fn fail(throttle: &Throttle, user: &str, source: Source, times: u32) {
        for _ in 0..times {
            throttle.failed(user, source);
        }
    }

    async fn wait(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[test]
    fn sources_are_addresses_without_ports_and_networks_of_64_bits() {
        assert_eq!(Source::of("10.0.0.1:1"), Source::of("10.0.0.1:2"));
        assert_ne!(Source::of("10.0.0.1:1"), Source::of("10.0.0.2:1"));
        assert_eq!(Source::of("[2001:db8:0:1::1]:1"), Source::of("[2001:db8:0:1:ffff::2]:9"));
        assert_ne!(Source::of("[2001:db8:0:1::1]:1"), Source::of("[2001:db8:0:2::1]:1"));
        assert_eq!(Source::of("[::ffff:10.0.0.1]:1"), Source::of("10.0.0.1:5"));
        assert_eq!(Source::of("nonsense"), Source::of(""));
        assert_ne!(Source::of(""), Source::of("10.0.0.1:1"));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_free_failures_each_one_doubles_the_wait_up_to_the_longest() {
        let throttle = Throttle::default();
        fail(&throttle, "u", from(1), FAILURES_FREE);
        throttle.check("u", from(1)).unwrap();
        let mut expected = LOGIN_DELAY;
        for _ in 0..40 {
            throttle.failed("u", from(1));
            // The address has failures of its own, which may be more than the free ones by now, but never weigh more.
            assert_eq!(throttle.check("u", from(1)), Err(expected));
            wait(expected - Duration::from_millis(1)).await;
            assert_eq!(throttle.check("u", from(1)), Err(Duration::from_millis(1)));
            wait(Duration::from_millis(1)).await;
            throttle.check("u", from(1)).unwrap();
            expected = LOGIN_DELAY_MAX.min(expected * 2);
        }
        assert_eq!(expected, LOGIN_DELAY_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_begins_anew_and_so_does_time() {
        let throttle = Throttle::default();
        fail(&throttle, "u", from(1), FAILURES_FREE);
        throttle.succeeded("u", from(1));
        fail(&throttle, "u", from(1), FAILURES_FREE);
        throttle.check("u", from(1)).unwrap();
        throttle.failed("u", from(1));
        throttle.check("u", from(1)).unwrap_err();
        wait(LOGIN_DELAY + FAILURES_FORGOTTEN).await;
        fail(&throttle, "u", from(1), FAILURES_FREE);
        throttle.check("u", from(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_attacker_does_not_lock_out_a_user_who_is_elsewhere() {
        let throttle = Throttle::default();
        for n in 1..200 {
            fail(&throttle, "admin", from(n), FAILURES_FREE + 3);
        }
        throttle.check("admin", from(200)).unwrap();
        throttle.succeeded("admin", from(200));
        throttle.check("admin", from(200)).unwrap();
        // But all attackers together are slowed down, also one with failures to spare.
        wait(LOGIN_DELAY_MAX).await;
        throttle.check("admin", from(1)).unwrap();
        throttle.failed("admin", from(2));
        assert_eq!(throttle.check("admin", from(1)), Err(LOGIN_DELAY_MAX));
        // The user's success elsewhere gives an attacker nothing.
        throttle.succeeded("admin", from(200));
        assert_eq!(throttle.check("admin", from(1)), Err(LOGIN_DELAY_MAX));
        throttle.check("other", from(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_names_from_one_address_are_slowed_down_as_well() {
        let throttle = Throttle::default();
        for n in 0..FAILURES_FREE_OF_ADDRESS {
            throttle.check("fresh", from(1)).unwrap();
            throttle.failed(&format!("u{n}"), from(1));
        }
        throttle.failed("one more", from(1));
        assert_eq!(throttle.check("fresh", from(1)), Err(LOGIN_DELAY));
        throttle.check("fresh", from(2)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_right_from_there_is_not_held_up_by_others_behind_the_same_address() {
        let throttle = Throttle::default();
        let others_fail = || {
            for n in 0..FAILURES_FREE_OF_ADDRESS + 10 {
                throttle.failed(&format!("u{n}"), from(1));
            }
        };
        throttle.succeeded("alice", from(1));
        others_fail();
        throttle.check("alice", from(1)).unwrap();
        throttle.check("bob", from(1)).unwrap_err();
        // Her own wrong passwords count as ever.
        fail(&throttle, "alice", from(1), FAILURES_FREE + 1);
        assert_eq!(throttle.check("alice", from(1)), Err(LOGIN_DELAY));
        throttle.succeeded("alice", from(1));
        wait(PROVEN_FOR).await;
        others_fail();
        throttle.check("alice", from(1)).unwrap_err();
        for n in 0..=FAILURES_KEPT_MAX {
            throttle.succeeded(&format!("{n}"), from(2));
            wait(Duration::from_millis(1)).await;
        }
        let tables = throttle.0.lock();
        assert_eq!(tables.proven.len(), FAILURES_KEPT_MAX);
        assert!(!tables.proven.contains_key(&("0".to_owned(), from(2))), "the oldest makes room");
    }

    #[tokio::test(start_paused = true)]
    async fn own_successes_between_guesses_do_not_help() {
        let throttle = Throttle::default();
        for _ in 0..FAILURES_FREE + 1 {
            throttle.failed("admin", from(1));
            throttle.succeeded("mallory", from(1));
        }
        throttle.check("admin", from(1)).unwrap_err();
        throttle.check("mallory", from(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_was_none_leaves_nothing() {
        let throttle = Throttle::default();
        for _ in 0..100 {
            throttle.failed("u", from(1));
            throttle.forgive("u", from(1));
            throttle.check("u", from(1)).unwrap();
        }
        assert!(throttle.0.lock().by_both.failures.is_empty());
        fail(&throttle, "u", from(1), FAILURES_FREE + 1);
        throttle.forgive("u", from(1));
        throttle.check("u", from(1)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_the_newest_failures_are_kept() {
        let throttle = Throttle::default();
        for n in 0..FAILURES_KEPT_MAX + 10 {
            throttle.failed(&format!("{n}{}", "long".repeat(1000)), Source::of(&format!("[{:x}::]:1", n + 1)));
            wait(Duration::from_millis(1)).await;
        }
        let tables = throttle.0.lock();
        let sizes = (tables.by_both.failures.len(), tables.by_source.failures.len(), tables.by_user.failures.len());
        assert_eq!(sizes, (FAILURES_KEPT_MAX, FAILURES_KEPT_MAX, FAILURES_KEPT_MAX));
        assert!(tables.by_user.failures.keys().all(|name| name.len() <= crate::limits::USER_NAME_LEN_MAX + 1));
        assert!(tables.by_source.failures.contains_key(&Source::of(&format!("[{:x}::]:1", FAILURES_KEPT_MAX + 10))));
        assert!(!tables.by_source.failures.contains_key(&Source::of("[1::]:1")));
    }
}
