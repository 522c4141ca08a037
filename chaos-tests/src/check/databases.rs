//! D2: a database whose creation was acknowledged is there at the end, unless somebody asked for its deletion; one whose deletion was
//! acknowledged is not listed, loaded or not; and what was acknowledged in one that is there stands in it. I2: what was acknowledged as
//! copied stands in the copy, and a copy is the beginning of what it is a copy of.

use super::Evidence;
use super::index::Indexed;
use crate::history::Ending;

fn find<'a>(evidence: &Evidence<'a>, name: &str) -> Option<&'a Indexed> {
    evidence.indexes.iter().find(|indexed| indexed.database == name)
}

/// Looks for every database that somebody made.
pub fn check(evidence: &Evidence<'_>) -> Result<(), String> {
    for (name, made) in &evidence.history.databases {
        let there = find(evidence, name);
        let is_listed = there.is_some() || evidence.sightings.listed.contains(name);
        match (made.created, made.deleted) {
            (true, None) if there.is_none() => return Err(format!("{name} was created and is not there")),
            (_, Some(Ending::Acknowledged(_))) if is_listed => return Err(format!("{name} was deleted and is there")),
            _ => {}
        }
        if let Some(lost) = there.and_then(|there| made.wrote.iter().find(|wrote| !there.ledger.contains(wrote))) {
            return Err(format!("{name} lacks what was acknowledged in it at {}", lost.0));
        }
    }
    match evidence.indexes.iter().skip(1).find(|indexed| !evidence.history.databases.contains_key(&indexed.database)) {
        Some(stranger) => Err(format!("nobody made {}", stranger.database)),
        None => Ok(()),
    }
}

/// Compares every copy with the first database.
pub fn copies(evidence: &Evidence<'_>) -> Result<(), String> {
    let Some(original) = evidence.indexes.first() else { return Ok(()) };
    for (name, copied) in &evidence.history.copied {
        // That it is there is another property.
        let Some(copy) = find(evidence, name) else { continue };
        if (copy.alhs.len() as u64) < *copied {
            return Err(format!("{copied} transactions were copied to {name}, which has {}", copy.alhs.len()));
        }
        let differs = copy.alhs.iter().zip(&original.alhs).position(|(copy, original)| copy != original);
        if let Some(at) = differs {
            return Err(format!("transaction {} of {name} is another one than in {}", at + 1, original.database));
        }
        if copy.alhs.len() > original.alhs.len() {
            return Err(format!("{name} has more transactions than {}", original.database));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Sightings, Versions};
    use crate::history::{Database, History};

    fn judge(history: &History, databases: &[(&str, &[u8])]) -> [Result<(), String>; 2] {
        let indexed = |(name, alhs): &(&str, &[u8])| Indexed {
            database: (*name).into(),
            alhs: alhs.iter().map(|byte| [*byte; 32]).collect(),
            ..Indexed::default()
        };
        let indexes: Vec<Indexed> = databases.iter().map(indexed).collect();
        let evidence = Evidence {
            history,
            ledger: &Vec::new(),
            versions: &Versions::default(),
            replicas: &[],
            indexes: &indexes,
            sightings: &Sightings::default(),
        };
        [check(&evidence), copies(&evidence)]
    }

    fn made(created: bool, deleted: Option<Ending>) -> History {
        let databases = [("own".to_owned(), Database { created, deleted, wrote: Vec::new() })].into();
        History { databases, ..History::default() }
    }

    #[test]
    fn what_was_made_is_there_and_what_was_deleted_is_not() {
        const GONE: Option<Ending> = Some(Ending::Acknowledged(0));
        let all: [(&str, &[u8]); 2] = [("first", &[]), ("own", &[])];
        let (with, without) = (&all[..], &all[..1]);
        for (created, deleted, there, absent) in [
            (true, None, true, false),
            (false, None, true, true),
            (true, GONE, false, true),
            (true, Some(Ending::Unknown), true, true),
            (false, GONE, false, true),
        ] {
            let history = made(created, deleted);
            assert_eq!(judge(&history, with)[0].is_ok(), there, "{created} {deleted:?}: there");
            assert_eq!(judge(&history, without)[0].is_ok(), absent, "{created} {deleted:?}: not there");
        }
        assert_eq!(judge(&History::default(), with)[0], Err("nobody made own".into()));
    }

    #[test]
    fn a_deletion_that_is_undone_and_a_write_that_is_lost_are_found() {
        let wrote = |tx| (tx, b"own".to_vec(), b"v".to_vec());
        let judge = |history: &History, listed: &[&str], ledger: Vec<_>| {
            let database = |name: &str| Indexed { database: name.into(), ..Indexed::default() };
            let indexes = [database("first"), Indexed { ledger, ..database("kept") }];
            let listed = listed.iter().map(|name| name.to_string()).collect();
            check(&Evidence {
                history,
                ledger: &Vec::new(),
                versions: &Versions::default(),
                replicas: &[],
                indexes: &indexes,
                sightings: &Sightings { listed, ..Sightings::default() },
            })
        };
        let mut history = made(true, Some(Ending::Acknowledged(0)));
        let kept = Database { created: true, wrote: vec![wrote(3)], ..Database::default() };
        history.databases.insert("kept".to_owned(), kept);
        assert_eq!(judge(&history, &["first", "kept"], vec![wrote(3)]), Ok(()));
        // It is not loaded, so nobody reads it.
        assert!(judge(&history, &["first", "kept", "own"], vec![wrote(3)]).unwrap_err().contains("was deleted"));
        for ledger in [vec![], vec![wrote(4)]] {
            assert!(judge(&history, &["first", "kept"], ledger).unwrap_err().contains("lacks"));
        }
    }

    #[test]
    fn a_copy_is_the_beginning_of_what_it_is_a_copy_of() {
        let history = History { copied: [("copy".to_owned(), 2)].into(), ..History::default() };
        let copy = |alhs: &[u8]| judge(&history, &[("first", &[1, 2, 3]), ("copy", alhs)])[1].clone();
        assert_eq!((copy(&[1, 2]), copy(&[1, 2, 3])), (Ok(()), Ok(())));
        assert!(copy(&[1]).unwrap_err().contains("which has 1"));
        assert!(copy(&[1, 3]).unwrap_err().contains("transaction 2"));
        assert!(copy(&[1, 2, 3, 4]).unwrap_err().contains("more transactions"));
    }
}
