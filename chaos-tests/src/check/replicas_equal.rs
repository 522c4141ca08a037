//! R2: all replicas have the same Alh at the same transaction and byte-identical sealed segments.

use std::collections::BTreeMap;

/// What a replica shows at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// Name, for the message.
    pub name: String,
    /// Alh of transaction n at n-1.
    pub alhs: Vec<[u8; 32]>,
    /// Bytes of closed segments by file name.
    pub segments: BTreeMap<String, Vec<u8>>,
}

/// Compares replicas pairwise with the first. `complete`: all must have the same length (after healing).
pub fn check(replicas: &[Replica], complete: bool) -> Result<(), String> {
    let Some((first, rest)) = replicas.split_first() else { return Ok(()) };
    for other in rest {
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
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let one =
            Replica { name: "a".into(), alhs: vec![[1; 32], [2; 32]], segments: [("0.seg".into(), vec![1])].into() };
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
}
