//! Round trips of arbitrary values through encoded messages, and malformed messages.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::*;

fn any_digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn any_terms() -> impl Strategy<Value = Vec<Digest>> {
    vec(any_digest(), 0..4)
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn any_id() -> impl Strategy<Value = TxId> {
    any::<u64>().prop_map(TxId)
}

prop_compose! {
    fn any_kv_metadata()(
        deleted in any::<bool>(),
        expires_at in option::of(any::<i64>()),
        non_indexable in any::<bool>(),
    ) -> KvMetadata {
        KvMetadata { deleted, expires_at, non_indexable }
    }
}

prop_compose! {
    fn any_header()(
        (id, bl_tx_id) in (any_id(), any_id()),
        (ts, version, nentries) in (any::<i64>(), 0..=1_u16, 0..=i32::MAX as u32),
        (eh, bl_root, prev_alh) in (any_digest(), any_digest(), any_digest()),
        truncated in option::of(1..=u64::MAX),
        extra in vec(any::<u8>(), 0..5),
    ) -> TxHeader {
        let metadata = TxMetadata { truncated_up_to: truncated.map(TxId), extra };
        TxHeader { id, ts, version, metadata, nentries, eh, bl_tx_id, bl_root, prev_alh }
    }
}

prop_compose! {
    fn any_entry()(
        key in any_bytes(),
        metadata in any_kv_metadata(),
        value_hash in any_digest(),
        value_len in 0..=i32::MAX as u32,
        value in any_bytes(),
    ) -> TxEntry {
        TxEntry { key, metadata, value_hash, value_len, value }
    }
}

prop_compose! {
    fn any_inclusion()(leaf in 0..=i32::MAX as u32, width in 0..=i32::MAX as u32, terms in any_terms())
        -> InclusionProof { InclusionProof { leaf, width, terms } }
}

prop_compose! {
    fn any_dual()(
        (source, target) in (any_header(), any_header()),
        (inclusion, consistency, last_inclusion) in (any_terms(), any_terms(), any_terms()),
        target_bl_tx_alh in any_digest(),
        (linear_source, linear_target, terms) in (any_id(), any_id(), any_terms()),
        linear_advance in option::of((any_terms(), vec(any_terms(), 0..3))),
    ) -> DualProof {
        DualProof {
            source,
            target,
            inclusion,
            consistency,
            target_bl_tx_alh,
            last_inclusion,
            linear: LinearProof { source: linear_source, target: linear_target, terms },
            linear_advance: linear_advance
                .map(|(linear_terms, inclusions)| LinearAdvanceProof { linear_terms, inclusions }),
        }
    }
}

prop_compose! {
    fn any_verifiable_tx()(
        header in any_header(),
        entries in vec(any_entry(), 0..3),
        dual_proof in any_dual(),
        signature in option::of((any_bytes(), any_bytes())),
    ) -> VerifiableTx {
        let signature = signature.map(|(public_key, signature)| schema::Signature { public_key, signature });
        VerifiableTx { tx: Tx { header, entries }, dual_proof, signature }
    }
}

/// Through the bytes, not only through the structs.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn verifiable_txs_survive_the_wire(tx in any_verifiable_tx()) {
        let wire: schema::VerifiableTx = sent(&(&tx).into());
        prop_assert_eq!(VerifiableTx::try_from(&wire), Ok(tx));
    }

    #[test]
    fn inclusion_proofs_survive_the_wire(proof in any_inclusion()) {
        let wire: schema::InclusionProof = sent(&(&proof).into());
        prop_assert_eq!(InclusionProof::try_from(&wire), Ok(proof));
    }

    #[test]
    fn compact_proofs_survive_the_wire(dual in any_dual()) {
        let DualProof { source, target, inclusion, consistency, .. } = dual;
        let proof = DualProofV2 { source, target, inclusion, consistency };
        let wire: schema::DualProofV2 = sent(&(&proof).into());
        prop_assert_eq!(DualProofV2::try_from(&wire), Ok(proof));
    }

    #[test]
    fn states_survive_the_wire(database in "[a-z0-9_]{1,12}", tx in any_id(), alh in any_digest()) {
        let state = TrustedState { database, tx, alh };
        prop_assert_eq!(TrustedState::try_from(&sent(&immutable_state(&state, None))), Ok(state));
    }

    #[test]
    fn kv_metadata_survives_the_wire_and_is_unset_when_empty(metadata in any_kv_metadata()) {
        let wire = kv_metadata(&metadata);
        prop_assert_eq!(wire.is_none(), metadata.is_empty());
        prop_assert_eq!(kv_metadata_from(wire.as_ref()), metadata);
        prop_assert_eq!(kv_metadata_from(wire.map(|wire| sent(&wire)).as_ref()), metadata);
    }

    #[test]
    fn bytes_from_anywhere_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(wire) = schema::VerifiableTx::decode(bytes.as_slice()) {
            let _ = VerifiableTx::try_from(&wire);
        }
    }
}

fn header() -> TxHeader {
    TxHeader {
        id: TxId(7),
        ts: 1_700_000_000,
        version: 1,
        metadata: TxMetadata::default(),
        nentries: 1,
        eh: sha256(b"eh"),
        bl_tx_id: TxId(6),
        bl_root: sha256(b"root"),
        prev_alh: sha256(b"prev"),
    }
}

fn dual() -> DualProof {
    DualProof {
        source: header(),
        target: header(),
        inclusion: vec![sha256(b"i")],
        consistency: vec![sha256(b"c")],
        target_bl_tx_alh: sha256(b"t"),
        last_inclusion: vec![sha256(b"l")],
        linear: LinearProof { source: TxId(7), target: TxId(7), terms: vec![sha256(b"n")] },
        linear_advance: Some(LinearAdvanceProof {
            linear_terms: vec![sha256(b"a")],
            inclusions: vec![vec![sha256(b"b")]],
        }),
    }
}

#[test]
fn an_ordinary_header_has_empty_metadata_on_the_wire() {
    let wire = schema::TxHeader::from(&header());
    assert_eq!(wire.metadata, Some(schema::TxMetadata::default()));
    let mut absent = wire;
    absent.metadata = None;
    assert_eq!(TxHeader::try_from(&absent), Ok(header()));
}

#[test]
fn an_expiry_of_zero_is_an_expiry() {
    let metadata = KvMetadata { expires_at: Some(0), ..KvMetadata::default() };
    assert_eq!(kv_metadata_from(Some(&sent(&kv_metadata(&metadata).unwrap()))), metadata);
}

#[test]
fn wrong_lengths_name_their_field() {
    type Spoil = fn(&mut schema::DualProof);
    let cases: [(&str, Spoil); 9] = [
        ("TxHeader.eH", |p| p.source_tx_header.as_mut().unwrap().e_h.truncate(31)),
        ("TxHeader.blRoot", |p| p.target_tx_header.as_mut().unwrap().bl_root.truncate(0)),
        ("TxHeader.prevAlh", |p| p.target_tx_header.as_mut().unwrap().prev_alh = vec![0; 33].into()),
        ("DualProof.inclusionProof", |p| p.inclusion_proof[0].truncate(1)),
        ("DualProof.consistencyProof", |p| p.consistency_proof[0].truncate(1)),
        ("DualProof.targetBlTxAlh", |p| p.target_bl_tx_alh.clear()),
        ("DualProof.lastInclusionProof", |p| p.last_inclusion_proof[0].truncate(1)),
        ("LinearProof.terms", |p| p.linear_proof.as_mut().unwrap().terms[0].truncate(1)),
        ("LinearAdvanceProof.linearProofTerms", |p| {
            p.linear_advance_proof.as_mut().unwrap().linear_proof_terms[0].truncate(1);
        }),
    ];
    for (expected, spoil) in cases {
        let mut wire = schema::DualProof::from(&dual());
        spoil(&mut wire);
        match DualProof::try_from(&wire) {
            Err(ConvertError::DigestLength { field, len }) => assert!(field == expected && len != 32, "{field}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn missing_parts_name_their_field() {
    type Spoil = fn(&mut schema::DualProof);
    let cases: [(&str, Spoil); 3] = [
        ("DualProof.sourceTxHeader", |p| p.source_tx_header = None),
        ("DualProof.targetTxHeader", |p| p.target_tx_header = None),
        ("DualProof.linearProof", |p| p.linear_proof = None),
    ];
    for (field, spoil) in cases {
        let mut wire = schema::DualProof::from(&dual());
        spoil(&mut wire);
        assert_eq!(DualProof::try_from(&wire), Err(ConvertError::Missing { field }));
    }
    let absent = schema::VerifiableTx::default();
    assert_eq!(VerifiableTx::try_from(&absent), Err(ConvertError::Missing { field: "VerifiableTx.tx" }));
    assert_eq!(Tx::try_from(&schema::Tx::default()), Err(ConvertError::Missing { field: "Tx.header" }));
}

#[test]
fn numbers_out_of_range_name_their_field() {
    let wire = schema::TxHeader { nentries: -1, ..(&header()).into() };
    assert_eq!(TxHeader::try_from(&wire), Err(ConvertError::OutOfRange { field: "TxHeader.nentries", value: -1 }));
    let wire = schema::TxHeader { version: 70_000, ..(&header()).into() };
    assert_eq!(TxHeader::try_from(&wire), Err(ConvertError::OutOfRange { field: "TxHeader.version", value: 70_000 }));
    let wire = schema::InclusionProof { leaf: -1, width: 1, terms: Vec::new() };
    assert_eq!(
        InclusionProof::try_from(&wire),
        Err(ConvertError::OutOfRange { field: "InclusionProof.leaf", value: -1 })
    );
}
