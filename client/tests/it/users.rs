//! Users: what the server is told.

use alhambra_client::SqlPrivilege;
use alhambra_proto::schema::{ChangeSqlPrivilegesRequest, PermissionAction};

use crate::chain::Chain;
use crate::fake::{Cluster, Fake};

#[tokio::test]
async fn sql_privileges_are_given_and_taken_by_their_names() {
    let fake = Fake::start(&Cluster::new(Chain::new(1)));
    let (client, _) = fake.client().await;
    let all = [
        (SqlPrivilege::Select, "SELECT"),
        (SqlPrivilege::Create, "CREATE"),
        (SqlPrivilege::Insert, "INSERT"),
        (SqlPrivilege::Update, "UPDATE"),
        (SqlPrivilege::Delete, "DELETE"),
        (SqlPrivilege::Drop, "DROP"),
        (SqlPrivilege::Alter, "ALTER"),
    ];
    client.grant_sql_privileges("user", &all.map(|(privilege, _)| privilege), "db").await.unwrap();
    client.revoke_sql_privileges("user", &[SqlPrivilege::Drop], "db").await.unwrap();
    let told = |action: PermissionAction, privileges: &[&str]| ChangeSqlPrivilegesRequest {
        action: action.into(),
        username: "user".into(),
        database: "db".into(),
        privileges: privileges.iter().map(|&name| name.into()).collect(),
    };
    let expected =
        [told(PermissionAction::Grant, &all.map(|(_, name)| name)), told(PermissionAction::Revoke, &["DROP"])];
    assert_eq!(*fake.node.privileges.lock().unwrap(), expected);
}
