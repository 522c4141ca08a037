//! Deletion of databases as `systemdb` has it: rights go with them, whoever gives some meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use alhambra_raft::groups::Groups;
use alhambra_raft::meta::{ADMIN_USER, DatabaseRecord, MetaError, User};

use crate::nodes::{Nodes, orders, run, soon, user};

fn with_right(name: &str, password: &str) -> User {
    let privileges = BTreeMap::from([("orders".into(), ["SELECT".into()].into())]);
    let permissions = BTreeMap::from([("orders".into(), 2), ("defaultdb".into(), 1)]);
    User { permissions, sql_privileges: privileges, ..user(name, password) }
}

async fn unloaded(groups: &Arc<Groups>) -> DatabaseRecord {
    let (record, _) = groups.meta().create_database(orders(), false, soon()).await.unwrap();
    groups.unload_database(&record, soon()).await.unwrap();
    DatabaseRecord { loaded: false, ..record }
}

#[test]
fn rights_of_many_users_go_with_the_database() {
    run(async {
        let mut nodes = Nodes::new(1, 1);
        nodes.start(0).await;
        nodes.ready().await;
        let groups = nodes.running[&0].clone();
        let record = unloaded(&groups).await;
        // More than one transaction takes.
        for n in 0..300 {
            groups.meta().put_user(with_right(&format!("u{n}"), "one"), None, None, soon()).await.unwrap();
        }
        groups.delete_database(&record, ADMIN_USER, soon()).await.unwrap();
        assert_eq!(groups.meta().database("orders"), None);
        for n in 0..300 {
            let now = groups.meta().user(&format!("u{n}")).unwrap();
            assert_eq!(now.permissions, BTreeMap::from([("defaultdb".into(), 1)]), "u{n}");
            assert!(now.sql_privileges.is_empty() && now.created_by == ADMIN_USER, "u{n}");
        }
        let again = groups.delete_database(&record, ADMIN_USER, soon()).await;
        assert_eq!(again, Err(MetaError::NotFound { name: "orders".into() }));
    });
}

#[test]
fn nobody_is_left_with_a_right_in_a_database_that_is_deleted_meanwhile() {
    run(async {
        let mut nodes = Nodes::new(3, 3);
        for node in 0..3 {
            nodes.start(node).await;
        }
        nodes.ready().await;
        let [first, other] = [0, 1].map(|node| nodes.running[&node].clone());
        for round in 0..5 {
            let record = unloaded(&first).await;
            other.meta().barrier(soon()).await.unwrap();
            // Through a node that may not have heard of the deletion, while it happens.
            let gives = async {
                let mut given = 0;
                for n in 0..40 {
                    let name = format!("u{round}-{n}");
                    match other.meta().put_user(with_right(&name, "one"), None, None, soon()).await {
                        Ok(_) => given += 1,
                        Err(MetaError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                given
            };
            let (given, deleted) = tokio::join!(gives, first.delete_database(&record, ADMIN_USER, soon()));
            deleted.unwrap();
            let late = other.meta().put_user(with_right("late", "one"), None, None, soon()).await;
            assert_eq!(late, Err(MetaError::Conflict { name: "late".into() }));
            first.meta().barrier(soon()).await.unwrap();
            let rights =
                first.meta().users().into_iter().filter(|user| {
                    user.permissions.contains_key("orders") || user.sql_privileges.contains_key("orders")
                });
            assert_eq!(rights.count(), 0, "round {round}, {given} were given a right before");
        }
        nodes.stop_all().await;
    });
}
