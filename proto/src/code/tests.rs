//! Walks every code and every text.

use std::collections::HashSet;

use super::*;

#[test]
fn every_code_has_one_row_and_finds_its_way_back() {
    let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    for code in Code::ALL {
        assert_eq!(Code::from_name(code.name()), Some(code));
        let status = code.status("why");
        assert_eq!((status.code(), status.message()), (code.grpc(), "why"));
        assert_eq!(Code::of(&status), Some(code));
        assert_ne!(code.grpc(), tonic::Code::Ok);
        assert!(code.sqlstate().is_none_or(|state| state.len() == 5), "{code:?}");
        if code.is_retryable() {
            assert_eq!(code.applied(), Applied::No, "{code:?} could be applied twice");
        }
    }
    assert_eq!(Code::of(&Status::unavailable("from the transport")), None);
}

/// The table of the style guide, typed in a second time.
#[test]
fn the_table_is_the_documented_one() {
    use tonic::Code as Grpc;
    let expected = [
        (Code::InvalidArgument, Grpc::InvalidArgument, Some("22023")),
        (Code::Syntax, Grpc::InvalidArgument, Some("42601")),
        (Code::DatabaseNotFound, Grpc::NotFound, Some("3D000")),
        (Code::TableNotFound, Grpc::NotFound, Some("42P01")),
        (Code::KeyNotFound, Grpc::NotFound, None),
        (Code::DatabaseExists, Grpc::AlreadyExists, Some("42P04")),
        (Code::TableExists, Grpc::AlreadyExists, Some("42P07")),
        (Code::RowExists, Grpc::AlreadyExists, Some("23505")),
        (Code::Conflict, Grpc::Aborted, Some("40001")),
        (Code::PreconditionFailed, Grpc::FailedPrecondition, Some("55000")),
        (Code::NotLeader, Grpc::Unavailable, Some("57P03")),
        (Code::Starting, Grpc::Unavailable, Some("57P03")),
        (Code::NoQuorum, Grpc::Unavailable, Some("57P03")),
        (Code::OutcomeUnknown, Grpc::DeadlineExceeded, Some("40003")),
        (Code::Canceled, Grpc::Cancelled, Some("57014")),
        (Code::Overloaded, Grpc::ResourceExhausted, Some("53000")),
        (Code::LimitExceeded, Grpc::ResourceExhausted, Some("54000")),
        (Code::Unauthenticated, Grpc::Unauthenticated, Some("28P01")),
        (Code::Denied, Grpc::PermissionDenied, Some("42501")),
        (Code::Unsupported, Grpc::Unimplemented, Some("0A000")),
        (Code::Corrupted, Grpc::DataLoss, Some("XX001")),
        (Code::Internal, Grpc::Internal, Some("XX000")),
    ];
    assert_eq!(expected.map(|(code, ..)| code), Code::ALL);
    for (code, grpc, sqlstate) in expected {
        assert_eq!((code.grpc(), code.sqlstate()), (grpc, sqlstate), "{code:?}");
    }
}

#[test]
fn a_leader_hint_travels_and_nonsense_does_not() {
    let status = Code::NotLeader.status_with_leader("try the leader", "10.0.0.2:3322");
    assert_eq!(status.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok()), Some("10.0.0.2:3322"));
    assert!(Code::NotLeader.status_with_leader("try", "bad\nhost").metadata().get(LEADER_KEY).is_none());
}

#[test]
fn every_immu_code_has_its_own_text() {
    let texts: HashSet<_> = ImmuCode::ALL.iter().map(|code| code.text()).collect();
    assert_eq!(texts.len(), ImmuCode::ALL.len());
    for code in ImmuCode::ALL {
        let details = Details::of(&coded(code, "outer", "inner")).expect("a coded error has details");
        assert_eq!(details, Details { code: code.text().into(), cause: "inner".into(), retry_delay_ms: 0 });
    }
}

#[test]
fn every_wire_error_is_answered_as_declared() {
    let mut seen = HashSet::new();
    for (name, error) in text::ALL {
        let status = error.status();
        assert!(error.is(&status), "{name}");
        assert_eq!((status.code(), status.message()), (error.grpc(), error.text()), "{name}");
        assert_eq!(Details::of(&status).is_some(), error.coded.is_some(), "{name}");
        assert_eq!(status.details().is_empty(), error.coded.is_none(), "{name}");
        assert!(seen.insert((error.grpc() as i32, error.text())), "{name} is there twice");
    }
    let refused = text::INVALID_CREDENTIALS.status_with_cause("tbtree: key not found");
    assert_eq!(Details::of(&refused).map(|details| details.cause).as_deref(), Some("tbtree: key not found"));
}

/// `google.rpc.Status` byte by byte, so that the order and the type URLs cannot change unnoticed.
#[test]
fn coded_details_have_the_exact_bytes() {
    let mut expected = vec![0x08, 7, 0x12, 17];
    expected.extend(b"session not found");
    expected.extend([0x1a, 73, 0x0a, 43]);
    expected.extend(b"type.googleapis.com/immudb.schema.ErrorInfo");
    expected.extend([0x12, 26, 0x0a, 5]);
    expected.extend(b"08001");
    expected.extend([0x12, 17]);
    expected.extend(b"session not found");
    expected.extend([0x1a, 45, 0x0a, 43]);
    expected.extend(b"type.googleapis.com/immudb.schema.RetryInfo");
    let status = text::SESSION_NOT_FOUND.status();
    assert_eq!(status.details(), expected);
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
}

#[test]
fn texts_that_name_something() {
    let cases = [
        (text::illegal_arguments("empty key"), tonic::Code::Unknown, "illegal arguments: empty key"),
        (
            text::illegal_state(3, 9),
            tonic::Code::Unknown,
            "illegal state: latest txID=3 is lower than specified as initial tx=9",
        ),
        (text::database_not_found("nope"), tonic::Code::NotFound, "'nope' does not exist"),
        (
            text::limit_too_large(2501, 2500),
            tonic::Code::Unknown,
            "result size limit exceeded: the specified limit (2501) is larger than the maximum allowed one (2500)",
        ),
        (
            text::message_too_large(33_554_433, 33_554_432),
            tonic::Code::ResourceExhausted,
            "grpc: received message larger than max (33554433 vs. 33554432)",
        ),
        (
            text::invalid_settings("invalid options: invalid MaxKeyLen"),
            tonic::Code::InvalidArgument,
            "rpc error: code = InvalidArgument desc = illegal arguments: invalid options: invalid MaxKeyLen",
        ),
        (text::database_of_user_not_found("d"), tonic::Code::Unknown, "database d does not exist"),
        (text::user_not_found("u"), tonic::Code::Unknown, "user u not found"),
        (text::user_not_found_coded("u"), tonic::Code::NotFound, "user u not found"),
        (text::user_not_found_or_yours("u"), tonic::Code::Unknown, "user u was not found or it was not created by you"),
        (text::user_not_yours("u"), tonic::Code::Unknown, "u was not created by you"),
        (text::user_not_active("u"), tonic::Code::FailedPrecondition, "user u is not active"),
        (
            text::user_without_permission("u", "d"),
            tonic::Code::FailedPrecondition,
            "user u doesn't have permission on database d",
        ),
    ];
    for (status, code, expected) in cases {
        assert_eq!((status.code(), status.message()), (code, expected));
    }
}

/// A status travels in headers, which have no room for what a client may send as a name.
#[test]
fn only_the_beginning_of_a_long_name_is_told() {
    let long = "ä".repeat(1 << 20);
    let status = text::user_not_found(&long);
    assert_eq!(status.message(), format!("user {} not found", "ä".repeat(64)));
    let odd = format!("x{long}");
    assert_eq!(text::user_not_found(&odd).message(), format!("user x{} not found", "ä".repeat(63)));
    assert_eq!(text::database_not_found(&long).message(), format!("'{}' does not exist", "ä".repeat(64)));
}
