use std::collections::BTreeMap;

use tonic::{Code, Status};

use super::*;

#[derive(Default)]
struct Fixed(BTreeMap<String, User>);

impl Records for Fixed {
    fn user(&self, name: &str) -> Option<User> {
        self.0.get(name).cloned()
    }

    fn has_database(&self, name: &str) -> bool {
        ["defaultdb", "orders", "systemdb"].contains(&name)
    }
}

fn user(name: &str, created_by: &str, permissions: &[(&str, u32)]) -> User {
    User {
        name: name.into(),
        permissions: permissions.iter().map(|(database, number)| ((*database).into(), *number)).collect(),
        created_by: created_by.into(),
        ..auth::first_user("hash".into(), 0)
    }
}

/// `immudb`; `boss` administrates `orders` and made `w`; `r` and `w` read and write there; `away` is inactive.
fn records() -> Fixed {
    let away = User { active: false, ..user("away", "immudb", &[("orders", 1)]) };
    let users = [
        auth::first_user("hash".into(), 0),
        user("boss", "immudb", &[("orders", 254), ("defaultdb", 1)]),
        user("r", "immudb", &[("orders", 1)]),
        user("w", "boss", &[("orders", 2)]),
        user("other", "immudb", &[("defaultdb", 2)]),
        away,
    ];
    Fixed(users.into_iter().map(|user| (user.name.clone(), user)).collect())
}

#[track_caller]
fn refused(result: Result<User>, code: Code, text: &str) {
    let status = Status::from(result.expect_err("it is refused"));
    assert_eq!((status.code(), status.message()), (code, text));
}

fn privileges(of: &User) -> Vec<(String, &'static str)> {
    listed_privileges(&of.sql_privileges).map(|(database, name)| (database.to_owned(), name)).collect()
}

#[test]
fn creating_is_checked_in_order() {
    let records = records();
    let by = |caller: &str| records.user(caller).unwrap();
    let create = |caller: &str, name: &str, password: &[u8], number, database: &str, fallback: Option<&str>| {
        create(&records, &by(caller), name, password, number, database, fallback)
    };
    let long = "x".repeat(64);
    for (caller, name, password, number, database, fallback, code, text) in [
        ("r", "", "", 9, "", None, Code::Unknown, "username can not be empty"),
        ("r", "w", "", 9, "", None, Code::Unknown, "database name can not be empty when there are multiple databases"),
        ("r", "w", "", 9, "nope", None, Code::Unknown, "database nope does not exist"),
        ("r", "w", "", 9, "Orders", None, Code::Unknown, "database Orders does not exist"),
        ("immudb", "w", "", 9, "systemdb", None, Code::Unknown, "database systemdb does not exist"),
        ("r", "w", "", 9, "orders", None, Code::Unknown, "unrecognized permission"),
        ("r", "w", "", 0, "orders", None, Code::Unknown, "unrecognized permission"),
        ("r", "w", "", 255, "orders", None, Code::Unknown, "you do not have permission on this database"),
        ("w", "w", "", 1, "orders", None, Code::Unknown, "you do not have permission on this database"),
        ("boss", "w", "", 1, "defaultdb", None, Code::Unknown, "you do not have permission on this database"),
        ("boss", "w", "", 1, "", Some("defaultdb"), Code::Unknown, "you do not have permission on this database"),
        ("boss", "w", "", 255, "orders", None, Code::Unknown, "can not create another system admin"),
        ("immudb", "w", "", 255, "orders", None, Code::Unknown, "can not create another system admin"),
        ("boss", "w", "", 1, "orders", None, Code::Unknown, "user already exists"),
        ("boss", "new", "", 1, "orders", None, Code::Unknown, "password is empty"),
    ] {
        refused(create(caller, name, password.as_bytes(), number, database, fallback), code, text);
    }
    for bad in ["a b", "a-b", "ä", "a\0", "../a", "*", &long] {
        let text = "username can only contain letters, digits and underscores";
        refused(create("boss", bad, b"pw", 1, "orders", None), Code::InvalidArgument, text);
    }
    let text = "error hashing password: bcrypt: password length exceeds 72 bytes";
    refused(create("boss", "new", &[b'x'; 73], 1, "orders", None), Code::Unknown, text);
    for good in ["a", "A_9", &long[..63]] {
        let made = create("boss", good, &[b'x'; 72], 254, "orders", None).unwrap();
        assert_eq!((&*made.name, made.active, made.password.is_empty()), (good, true, true));
        assert_eq!(made.permissions, [("orders".to_owned(), 254)].into());
    }
    let made = create("immudb", "new", b"pw", 1, "", Some("defaultdb")).unwrap();
    assert_eq!(made.permissions, [("defaultdb".to_owned(), 1)].into());
}

#[test]
fn privileges_come_with_the_permission() {
    for (number, expected) in [(1, &SQL_PRIVILEGES[..1]), (2, &SQL_PRIVILEGES[..]), (254, &SQL_PRIVILEGES[..])] {
        let by = auth::first_user("hash".into(), 0);
        let made = create(&records(), &by, "new", b"pw", number, "orders", None).unwrap();
        let expected: Vec<_> = expected.iter().map(|name| ("orders".to_owned(), *name)).collect();
        assert_eq!(privileges(&made), expected);
    }
    assert_eq!(SQL_PRIVILEGES[0], "SELECT");
}

#[test]
fn who_sees_whom() {
    let records = records();
    let all: Vec<User> = records.0.values().cloned().collect();
    let seen = |caller: &str, database: Option<&str>| -> Vec<String> {
        let caller = records.user(caller).unwrap();
        visible(all.clone(), &caller, database).into_iter().map(|user| user.name).collect()
    };
    let everybody = ["away", "boss", "immudb", "other", "r", "w"];
    assert_eq!(seen("immudb", Some("orders")), everybody);
    assert_eq!(seen("immudb", None), everybody);
    assert_eq!(seen("boss", Some("orders")), ["away", "boss", "r", "w"]);
    assert_eq!(seen("boss", Some("defaultdb")), ["boss"], "it administrates another database");
    assert_eq!(seen("boss", None), ["boss"]);
    assert_eq!(seen("w", Some("orders")), ["w"]);
    assert_eq!(seen("r", Some("orders")), ["r"]);
}

#[test]
fn whose_password_may_be_changed() {
    let records = records();
    let change = |caller: &str, name: &str, password: &[u8]| {
        change_password(&records, &records.user(caller).unwrap(), name, password)
    };
    for caller in ["r", "w"] {
        let text = "user is not system admin nor admin in any of the databases";
        refused(change(caller, caller, b""), Code::Unknown, text);
    }
    for (caller, name) in
        [("immudb", "nobody"), ("boss", "nobody"), ("boss", "r"), ("boss", "boss"), ("boss", "immudb")]
    {
        let text = format!("user {name} was not found or it was not created by you");
        refused(change(caller, name, b""), Code::Unknown, &text);
    }
    refused(change("boss", "w", b""), Code::Unknown, "password is empty");
    let text = "error hashing password: bcrypt: password length exceeds 72 bytes";
    refused(change("immudb", "immudb", &[0; 73]), Code::Unknown, text);
    for (caller, name) in [("boss", "w"), ("immudb", "w"), ("immudb", "away"), ("immudb", "immudb")] {
        assert_eq!(change(caller, name, b"new").unwrap(), records.user(name).unwrap());
    }
}

fn permission_change(action: Option<Action>, user: &str, database: &str, permission: u32) -> PermissionChange {
    PermissionChange { action, user: user.into(), database: database.into(), permission }
}

#[test]
fn permissions_are_changed_in_order() {
    let records = records();
    let change =
        |caller: &str, change: PermissionChange| change_permission(&records, &records.user(caller).unwrap(), &change);
    let (grant, revoke) = (Some(Action::Grant), Some(Action::Revoke));
    let invalid = Code::InvalidArgument;
    for (caller, action, name, database, number, code, text) in [
        ("r", None, "", "", 0, invalid, "username can not be empty"),
        ("r", None, "r", "", 0, invalid, "database can not be empty"),
        ("r", None, "r", "nope", 0, invalid, "database does not exist"),
        ("r", None, "r", "orders", 0, invalid, "action not recognized"),
        ("r", grant, "r", "orders", 0, invalid, "unrecognized permission"),
        ("r", revoke, "r", "orders", 0, invalid, "unrecognized permission"),
        ("r", grant, "r", "orders", 3, invalid, "unrecognized permission"),
        ("r", grant, "r", "orders", 2, invalid, "changing your own permissions is not allowed"),
        ("immudb", grant, "immudb", "orders", 2, invalid, "changing your own permissions is not allowed"),
        ("boss", grant, "immudb", "orders", 2, invalid, "changing sysadmin permissions is not allowed"),
        ("r", grant, "w", "orders", 2, Code::PermissionDenied, "you do not have permission on this database"),
        ("r", grant, "nobody", "orders", 2, Code::PermissionDenied, "you do not have permission on this database"),
        ("boss", grant, "w", "defaultdb", 2, Code::PermissionDenied, "you do not have permission on this database"),
        ("boss", grant, "w", "systemdb", 1, Code::PermissionDenied, "you do not have permission on this database"),
        ("boss", grant, "nobody", "orders", 2, Code::NotFound, "user nobody not found"),
        ("boss", grant, "away", "orders", 2, Code::FailedPrecondition, "user away is not active"),
        ("immudb", grant, "w", "systemdb", 2, Code::Internal, "permission denied"),
        ("immudb", revoke, "w", "systemdb", 2, Code::Internal, "permission denied"),
        ("immudb", grant, "w", "systemdb", 1, Code::Internal, "permission denied"),
        ("immudb", grant, "w", "systemdb", 254, Code::Internal, "permission denied"),
        ("boss", grant, "w", "orders", 255, invalid, "changing sysadmin permissions is not allowed"),
        ("immudb", grant, "w", "orders", 255, invalid, "changing sysadmin permissions is not allowed"),
    ] {
        refused(change(caller, permission_change(action, name, database, number)), code, text);
    }
    let granted = change("boss", permission_change(grant, "other", "orders", 1)).unwrap();
    assert_eq!(granted.permissions, [("defaultdb".to_owned(), 2), ("orders".to_owned(), 1)].into());
    let replaced = change("boss", permission_change(grant, "w", "orders", 1)).unwrap();
    assert_eq!(replaced.permissions, [("orders".to_owned(), 1)].into());
    for number in [1, 2, 254, 255] {
        let revoked = change("boss", permission_change(revoke, "w", "orders", number)).unwrap();
        assert!(revoked.permissions.is_empty());
        let absent = change("boss", permission_change(revoke, "other", "orders", number)).unwrap();
        assert_eq!(absent.permissions, [("defaultdb".to_owned(), 2)].into());
    }
}

#[test]
fn a_changed_permission_resets_every_sql_privilege() {
    let mut records = records();
    let held = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    records.0.get_mut("other").unwrap().sql_privileges =
        [("defaultdb".to_owned(), held(&["DROP"])), ("orders".to_owned(), held(&["ALTER"]))].into();
    let boss = records.user("boss").unwrap();
    for action in [Action::Grant, Action::Revoke] {
        let change = permission_change(Some(action), "other", "orders", 1);
        let changed = change_permission(&records, &boss, &change).unwrap();
        assert_eq!(privileges(&changed), [("orders".to_owned(), "SELECT")], "{action:?}");
    }
}

#[test]
fn privileges_are_changed_in_order() {
    let records = records();
    let change = |caller: &str, action, name: &str, database: &str, privileges: &[&str]| {
        let privileges = privileges.iter().map(|name| (*name).to_owned()).collect();
        let change = PrivilegeChange { action, user: name.into(), database: database.into(), privileges };
        change_privileges(&records, &records.user(caller).unwrap(), &change)
    };
    let (grant, revoke) = (Some(Action::Grant), Some(Action::Revoke));
    let invalid = Code::InvalidArgument;
    for (caller, action, name, database, privilege, code, text) in [
        ("r", None, "", "", "x", invalid, "username can not be empty"),
        ("r", None, "r", "", "x", invalid, "database does not exist"),
        ("r", None, "r", "nope", "x", invalid, "database does not exist"),
        ("r", None, "r", "orders", "x", invalid, "action not recognized"),
        ("r", grant, "r", "orders", "select", invalid, "SQL privilege not recognized"),
        ("r", grant, "r", "orders", "SELECT", invalid, "changing your own privileges is not allowed"),
        ("boss", grant, "immudb", "orders", "SELECT", invalid, "changing sysadmin privileges is not allowed"),
        ("r", grant, "w", "orders", "SELECT", Code::PermissionDenied, "you do not have permission on this database"),
        ("boss", grant, "nobody", "orders", "SELECT", Code::NotFound, "user nobody not found"),
        ("boss", grant, "away", "orders", "SELECT", Code::FailedPrecondition, "user away is not active"),
        (
            "boss",
            grant,
            "other",
            "orders",
            "SELECT",
            Code::FailedPrecondition,
            "user other doesn't have permission on database orders",
        ),
    ] {
        refused(change(caller, action, name, database, &[privilege]), code, text);
    }
    let granted = change("boss", grant, "r", "orders", &["DROP", "INSERT", "DROP"]).unwrap();
    assert_eq!(privileges(&granted), [("orders".to_owned(), "INSERT"), ("orders".to_owned(), "DROP")]);
    assert_eq!(change("boss", grant, "r", "orders", &[]).unwrap(), records.user("r").unwrap());

    let mut records = records;
    records.0.insert("r".into(), granted);
    let boss = records.user("boss").unwrap();
    let mut taken = PrivilegeChange {
        action: revoke,
        user: "r".into(),
        database: "orders".into(),
        privileges: vec!["DROP".into(), "ALTER".into()],
    };
    let left = change_privileges(&records, &boss, &taken).unwrap();
    assert_eq!(privileges(&left), [("orders".to_owned(), "INSERT")]);
    taken.privileges.push("INSERT".into());
    assert!(change_privileges(&records, &boss, &taken).unwrap().sql_privileges.is_empty());
}

#[test]
fn whose_activity_may_be_changed() {
    let records = records();
    let change = |caller: &str, name: &str| set_active(&records, &records.user(caller).unwrap(), name, false);
    for (caller, name, text) in [
        ("r", "", "username can not be empty"),
        ("r", "r", "changing your own status is not allowed"),
        ("immudb", "immudb", "changing your own status is not allowed"),
        ("r", "nobody", "user is not system admin nor admin in any of the databases"),
        ("w", "r", "user is not system admin nor admin in any of the databases"),
        ("boss", "nobody", "user nobody not found"),
        ("boss", "r", "r was not created by you"),
        ("boss", "immudb", "immudb was not created by you"),
    ] {
        refused(change(caller, name), Code::Unknown, text);
    }
    for (caller, name) in [("boss", "w"), ("immudb", "w"), ("immudb", "boss")] {
        assert_eq!(change(caller, name).unwrap(), User { active: false, ..records.user(name).unwrap() });
    }
    let again = set_active(&records, &records.user("immudb").unwrap(), "away", true).unwrap();
    assert!(again.active);
}
