//! The hash chain of a database, recomputed from what a server shows: textbook definitions, one hash call per line of the
//! description, recursion where the description has it.

use sha2::{Digest, Sha256};

/// A 32-byte hash.
pub type Hash = [u8; 32];

/// An entry as a server shows it: stored key, metadata bytes, hash of the stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Stored key, prefix byte included.
    pub key: Vec<u8>,
    /// Serialised metadata, empty for none.
    pub metadata: Vec<u8>,
    /// SHA-256 of the stored value.
    pub value_hash: Hash,
}

/// A transaction as a server shows it (header version 1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Position in the ledger, from 1.
    pub id: u64,
    /// Unix seconds.
    pub ts: i64,
    /// Serialised attributes of the header, empty for none.
    pub metadata: Vec<u8>,
    /// Alh of the transaction before.
    pub prev_alh: Hash,
    /// Root over the entries.
    pub eh: Hash,
    /// Size of the main tree when the header was made.
    pub bl_tx_id: u64,
    /// Root of the main tree at that size.
    pub bl_root: Hash,
    /// In order.
    pub entries: Vec<Entry>,
}

/// SHA-256 of all parts after each other.
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn tree(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => hash(&[]),
        [one] => hash(&[&[0], one]),
        _ => {
            let mut split = 1;
            while split * 2 < leaves.len() {
                split *= 2;
            }
            hash(&[&[1], &tree(&leaves[..split]), &tree(&leaves[split..])])
        }
    }
}

/// Digest of an entry (header version 1).
pub fn entry_digest(entry: &Entry) -> Hash {
    let metadata_len = (entry.metadata.len() as u16).to_be_bytes();
    let key_len = (entry.key.len() as u16).to_be_bytes();
    hash(&[&metadata_len, &entry.metadata, &key_len, &entry.key, &entry.value_hash])
}

/// Eh: the root over the entries of a transaction.
pub fn eh(entries: &[Entry]) -> Hash {
    tree(&entries.iter().map(entry_digest).collect::<Vec<_>>())
}

/// Attributes of the header of a transaction that has all values before another one forgotten; none for 0.
pub fn truncated_up_to(tx: u64) -> Vec<u8> {
    if tx == 0 { Vec::new() } else { [&[0][..], &tx.to_be_bytes()].concat() }
}

/// Inner hash of a header (version 1) with so many entries.
pub fn inner(tx: &Transaction, entries: u32) -> Hash {
    hash(&[
        &tx.ts.to_be_bytes(),
        &1u16.to_be_bytes(),
        &(tx.metadata.len() as u16).to_be_bytes(),
        &tx.metadata,
        &entries.to_be_bytes(),
        &tx.eh,
        &tx.bl_tx_id.to_be_bytes(),
        &tx.bl_root,
    ])
}

/// Recomputes the accumulated hash of a transaction from its parts.
pub fn alh(tx: &Transaction) -> Hash {
    hash(&[&tx.id.to_be_bytes(), &tx.prev_alh, &inner(tx, tx.entries.len() as u32)])
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Id of the first bad transaction.
    pub tx: u64,
    /// Which rule it breaks (`ARCHITECTURE.md`, invariants).
    pub rule: &'static str,
}

/// Checks a whole ledger from transaction 1; answers the Alh of every transaction, in order.
///
/// Time O(n log n): roots are kept as the peaks of perfect subtrees, as a textbook append does.
pub fn check(transactions: &[Transaction]) -> Result<Vec<Hash>, Broken> {
    let mut alhs = Vec::with_capacity(transactions.len());
    let mut previous = hash(&[]);
    let mut peaks: Vec<(u64, Hash)> = Vec::new();
    for (i, tx) in transactions.iter().enumerate() {
        let broken = |rule| Err(Broken { tx: tx.id, rule });
        let id = i as u64 + 1;
        if tx.id != id {
            return broken("L2: ids are contiguous from 1");
        }
        if tx.prev_alh != previous {
            return broken("L1: the header carries the Alh before it");
        }
        if tx.eh != eh(&tx.entries) {
            return broken("L4: Eh is the root over the entries");
        }
        let root = peaks.iter().rev().map(|(_, h)| *h).reduce(|right, left| hash(&[&[1], &left, &right]));
        if tx.bl_tx_id != id - 1 || tx.bl_root != root.unwrap_or([0; 32]) {
            return broken("L3: BlTxID = id - 1 and BlRoot is the root there");
        }
        previous = alh(tx);
        alhs.push(previous);
        let mut node = (1, hash(&[&[0], &previous]));
        while let Some((size, left)) = peaks.pop_if(|(size, _)| *size == node.0) {
            node = (size * 2, hash(&[&[1], &left, &node.1]));
        }
        peaks.push(node);
    }
    Ok(alhs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: u64) -> Vec<Transaction> {
        let mut out: Vec<Transaction> = Vec::new();
        let mut alhs: Vec<Hash> = Vec::new();
        for id in 1..=n {
            let entries: Vec<Entry> = (0..=id % 3)
                .map(|k| Entry { key: vec![0, id as u8, k as u8], metadata: vec![], value_hash: hash(&[&[k as u8]]) })
                .collect();
            let tx = Transaction {
                id,
                ts: 7 + id as i64,
                metadata: truncated_up_to(if id == 5 { 3 } else { 0 }),
                prev_alh: alhs.last().copied().unwrap_or(hash(&[])),
                eh: eh(&entries),
                bl_tx_id: id - 1,
                bl_root: if alhs.is_empty() { [0; 32] } else { tree(&alhs) },
                entries,
            };
            alhs.push(alh(&tx));
            out.push(tx);
        }
        out
    }

    #[test]
    fn the_incremental_root_is_the_recursive_one() {
        for n in 0..40 {
            assert_eq!(check(&chain(n)).map(|alhs| alhs.len() as u64), Ok(n));
        }
    }

    #[test]
    fn any_change_is_noticed_at_its_transaction() {
        let good = chain(9);
        for at in 0..9 {
            let id = at as u64 + 1;
            let mut changed = good.clone();
            changed[at].entries[0].value_hash[0] ^= 1;
            assert_eq!(check(&changed).map_err(|b| b.tx), Err(id));
            let mut changed = good.clone();
            changed[at].bl_root[5] ^= 1;
            assert_eq!(check(&changed).map_err(|b| b.tx), Err(id));
            if at + 1 < 9 {
                let mut changed = good.clone();
                changed[at].ts += 1;
                assert_eq!(check(&changed).map_err(|b| b.tx), Err(id + 1), "the next header no longer fits");
            }
        }
    }
}
