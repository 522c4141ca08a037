//! Altered inclusion proofs of entries are refused.

use alhambra_ledger::{
    Digest,
    digest::{EMPTY, ZERO, sha256},
    error::{Step, VerifyError},
    header::{TxHeader, TxMetadata},
    htree::{self, InclusionProof},
    ids::TxId,
    proof,
};

use crate::tamper_dual::alter_list;

const REFUSED: Result<(), VerifyError> = Err(VerifyError { step: Step::EntryInclusion });

fn header(digests: &[Digest]) -> TxHeader {
    TxHeader {
        id: TxId(1),
        ts: 0,
        version: 1,
        metadata: TxMetadata::default(),
        nentries: u32::try_from(digests.len()).unwrap(),
        eh: htree::root(digests),
        bl_tx_id: TxId(0),
        bl_root: ZERO,
        prev_alh: EMPTY,
    }
}

#[test]
fn every_alteration_is_refused() {
    for width in 1..=16u32 {
        let digests: Vec<_> = (0..width).map(|n| sha256(&n.to_be_bytes())).collect();
        let header = header(&digests);
        for leaf in 0..width {
            let good = htree::prove(&digests, leaf).unwrap();
            let digest = digests[leaf as usize];
            assert_eq!(proof::verify_entry(&good, &digest, &header), Ok(()));
            alter_list(&good.terms, |terms, what| {
                let bad = InclusionProof { terms, ..good.clone() };
                assert_eq!(htree::verify(&bad, &digest, &header.eh), REFUSED, "{leaf} of {width}: terms {what}");
            });
            for bit in 0..32 {
                let bad = InclusionProof { leaf: leaf ^ 1 << bit, ..good.clone() };
                assert_eq!(proof::verify_entry(&bad, &digest, &header), REFUSED, "{leaf} of {width}: leaf bit {bit}");
                let bad = InclusionProof { width: width ^ 1 << bit, ..good.clone() };
                let counted = Err(VerifyError { step: Step::EntryCount });
                assert_eq!(proof::verify_entry(&bad, &digest, &header), counted, "{leaf} of {width}: width bit {bit}");
            }
            for byte in 0..32 {
                let (mut other, mut eh) = (digest, header.eh);
                other.0[byte] ^= 1;
                eh.0[byte] ^= 1;
                assert_eq!(htree::verify(&good, &other, &header.eh), REFUSED, "{leaf} of {width}: digest {byte}");
                assert_eq!(htree::verify(&good, &digest, &eh), REFUSED, "{leaf} of {width}: eh {byte}");
            }
        }
    }
}

#[test]
fn all_entries_and_no_others() {
    let digests: Vec<_> = (0..7u8).map(|n| sha256(&[n])).collect();
    let header = header(&digests);
    assert_eq!(proof::verify_entries(&digests, &header), Ok(()));
    alter_list(&digests, |bad, what| {
        let step = if bad.len() == digests.len() { Step::Entries } else { Step::EntryCount };
        assert_eq!(proof::verify_entries(&bad, &header), Err(VerifyError { step }), "{what}");
    });
}
