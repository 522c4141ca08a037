//! The wire formats: generated protobuf types and services, their conversions to and from the ledger's own types, and
//! the one table of errors.
//!
//! - [`schema`] and [`model`] are what the SDKs speak (packages `immudb.schema` and `immudb.model`); their `.proto`
//!   files are generated from `testdata/protocol.json` by `generate.py`.
//! - [`cluster`] is what an administrator can ask of a cluster beyond that.
//! - [`peer`] is what nodes speak to each other.
//! - [`convert`] holds the only conversions between protobuf and domain types.
//! - [`code`] is the only table of error codes and texts.
//! - [`header`] has the names of headers.
//!
//! What does not belong here: rules of the ledger, transport, retries.

pub mod code;
pub mod convert;
pub mod header;

/// Package `immudb.schema`: `ImmuService` and its messages. Binary fields are [`bytes::Bytes`].
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/immudb.schema.rs"));
}

/// Package `immudb.model`: `AuthorizationService`, `DocumentService` and their messages.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod model {
    include!(concat!(env!("OUT_DIR"), "/immudb.model.rs"));
}

/// Package `alhambra.cluster`: what an administrator can ask of a cluster beyond what SDKs know.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/alhambra.cluster.rs"));
}

/// Package `alhambra.peer`: the links between the nodes of a cluster.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/alhambra.peer.rs"));
}

/// Encoded `FileDescriptorSet` of all packages, imports and HTTP options included; for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Descriptors of what clients may call, encoded, for reflection.
pub const CLIENT_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client_descriptors.bin"));
