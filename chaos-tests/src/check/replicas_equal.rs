//! R2: all replicas have the same Alh at the same transaction and byte-identical sealed segments.

use std::collections::{BTreeMap, BTreeSet};

/// What a replica shows at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// Name, for the message.
    pub name: String,
    /// Alh of transaction n at n-1.
    pub alhs: Vec<[u8; 32]>,
    /// Bytes of closed segments by file name, of all databases.
    pub segments: BTreeMap<String, Vec<u8>>,
}

/// Compares every two replicas. `complete`: all must have the same length and the same closed segments (after healing). Forgetting
/// values is no excuse: a pruned segment keeps its name, and its bytes are the same on all replicas again.
pub fn check(replicas: &[Replica], complete: bool) -> Result<(), String> {
    for (at, first) in replicas.iter().enumerate() {
        for other in &replicas[at + 1..] {
            pair(first, other, complete)?;
        }
    }
    if complete {
        let all: BTreeSet<&String> = replicas.iter().flat_map(|replica| replica.segments.keys()).collect();
        for file in all {
            if let Some(without) = replicas.iter().find(|replica| !replica.segments.contains_key(file)) {
                return Err(format!("{} has no closed {file}, others have", without.name));
            }
        }
    }
    Ok(())
}

fn pair(first: &Replica, other: &Replica, complete: bool) -> Result<(), String> {
    for (i, (a, b)) in first.alhs.iter().zip(&other.alhs).enumerate() {
        if a != b {
            return Err(format!("{} and {} differ in the Alh of transaction {}", first.name, other.name, i + 1));
        }
    }
    if complete && first.alhs.len() != other.alhs.len() {
        let (a, b) = (first.alhs.len(), other.alhs.len());
        return Err(format!("{} has {a} transactions, {} has {b}", first.name, other.name));
    }
    for (file, bytes) in &first.segments {
        if other.segments.get(file).is_some_and(|there| there != bytes) {
            return Err(format!("{} and {} differ in {file}", first.name, other.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str, segments: &[(&str, u8)]) -> Replica {
        let segments = segments.iter().map(|(file, byte)| (file.to_string(), vec![*byte])).collect();
        Replica { name: name.into(), alhs: vec![[1; 32], [2; 32]], segments }
    }

    #[test]
    fn a_difference_is_named() {
        let one = replica("a", &[("0.seg", 1)]);
        let same = Replica { name: "b".into(), ..one.clone() };
        let short = Replica { name: "b".into(), alhs: vec![[1; 32]], segments: BTreeMap::new() };
        let wrong = Replica { name: "b".into(), alhs: vec![[1; 32], [3; 32]], segments: BTreeMap::new() };
        let rot = Replica { name: "b".into(), alhs: vec![], segments: [("0.seg".into(), vec![2])].into() };
        assert!(check(&[one.clone(), same], true).is_ok());
        assert!(check(&[one.clone(), short.clone()], false).is_ok());
        assert!(check(&[one.clone(), short], true).is_err());
        assert!(check(&[one.clone(), wrong], false).is_err());
        assert!(check(&[one, rot], false).is_err());
    }

    #[test]
    fn the_first_replica_is_one_of_many() {
        let replicas = [replica("a", &[]), replica("b", &[("0.seg", 1)]), replica("c", &[("0.seg", 2)])];
        assert_eq!(check(&replicas, false), Err("b and c differ in 0.seg".into()));
    }

    #[test]
    fn a_closed_segment_that_one_has_all_have() {
        let replicas = [replica("a", &[("0.seg", 1)]), replica("b", &[("0.seg", 1), ("1.seg", 1)])];
        assert!(check(&replicas, false).is_ok(), "it may come");
        assert_eq!(check(&replicas, true), Err("a has no closed 1.seg, others have".into()));
        let [a, b] = replicas;
        assert!(check(&[b, a], true).is_err(), "whoever is first");
    }
}
