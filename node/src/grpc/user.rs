//! Users.

use alhambra_proto::schema;
use alhambra_raft::meta::User;
use bytes::Bytes;
use tonic::{Request, Response};

use super::{Reply, open, read_reply};
use crate::service::App;
use crate::service::user::{Action, PermissionChange, PrivilegeChange, listed_privileges};

const MS_PER_DAY: i64 = 86_400_000;

/// A moment as Go prints it: fractions of a second only as far as they are not zero.
fn go_time(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(MS_PER_DAY), unix_ms.rem_euclid(MS_PER_DAY));
    let (year, month, day) = date(days);
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let fraction = if ms == 0 { String::new() } else { format!(".{ms:03}").trim_end_matches('0').to_owned() };
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}{fraction} +0000 UTC")
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from March, so that a leap day is the last.
const fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_400_YEARS: i64 = 146_097;
    let since = days + 719_468; // 0000-03-01
    let (cycle, day) = (since.div_euclid(DAYS_PER_400_YEARS), since.rem_euclid(DAYS_PER_400_YEARS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days, and so have the next five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let after_december = month >= 10;
    (cycle * 400 + year + after_december as i64, if after_december { month - 9 } else { month + 3 }, day)
}

fn listed(user: User) -> schema::User {
    let privilege = |(database, privilege): (&str, &str)| schema::SqlPrivilege {
        database: database.to_owned(),
        privilege: privilege.to_owned(),
    };
    let permission = |(database, permission)| schema::Permission { database, permission };
    schema::User {
        sql_privileges: listed_privileges(&user.sql_privileges).map(privilege).collect(),
        permissions: user.permissions.into_iter().map(permission).collect(),
        createdby: user.created_by,
        createdat: go_time(user.created_at_ms),
        active: user.active,
        user: Bytes::from(user.name),
    }
}

/// A name on the wire is bytes; what is no text is no name, and is refused as one.
fn name(bytes: &Bytes) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn action(number: i32) -> Option<Action> {
    match schema::PermissionAction::try_from(number).ok()? {
        schema::PermissionAction::Grant => Some(Action::Grant),
        schema::PermissionAction::Revoke => Some(Action::Revoke),
    }
}

pub(super) async fn list(app: &App, request: Request<()>) -> Reply<schema::UserList> {
    let (call, ()) = open(request)?;
    let users = app.users(&call).await?.into_iter().map(listed).collect();
    Ok(read_reply(call.level, schema::UserList { users }))
}

pub(super) async fn create(app: &App, request: Request<schema::CreateUserRequest>) -> Reply<()> {
    let (call, request) = open(request)?;
    let schema::CreateUserRequest { user, password, permission, database } = request;
    app.create_user(&call, &name(&user), &password, permission, &database).await?;
    Ok(Response::new(()))
}

pub(super) async fn change_password(app: &App, request: Request<schema::ChangePasswordRequest>) -> Reply<()> {
    let (call, request) = open(request)?;
    app.change_password(&call, &name(&request.user), &request.old_password, &request.new_password).await?;
    Ok(Response::new(()))
}

pub(super) async fn change_permission(app: &App, request: Request<schema::ChangePermissionRequest>) -> Reply<()> {
    let (call, request) = open(request)?;
    let change = PermissionChange {
        action: action(request.action),
        user: request.username,
        database: request.database,
        permission: request.permission,
    };
    app.change_permission(&call, &change).await?;
    Ok(Response::new(()))
}

pub(super) async fn change_sql_privileges(
    app: &App,
    request: Request<schema::ChangeSqlPrivilegesRequest>,
) -> Reply<schema::ChangeSqlPrivilegesResponse> {
    let (call, request) = open(request)?;
    let change = PrivilegeChange {
        action: action(request.action),
        user: request.username,
        database: request.database,
        privileges: request.privileges,
    };
    app.change_privileges(&call, &change).await?;
    Ok(Response::new(schema::ChangeSqlPrivilegesResponse {}))
}

pub(super) async fn set_active(app: &App, request: Request<schema::SetActiveUserRequest>) -> Reply<()> {
    let (call, request) = open(request)?;
    app.set_active_user(&call, &request.username, request.active).await?;
    Ok(Response::new(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_go_prints_them() {
        for (ms, expected) in [
            (0, "1970-01-01 00:00:00 +0000 UTC"),
            (1_767_366_245_123, "2026-01-02 15:04:05.123 +0000 UTC"),
            (1_767_366_245_120, "2026-01-02 15:04:05.12 +0000 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 +0000 UTC"),
            (951_868_799_001, "2000-02-29 23:59:59.001 +0000 UTC"),
            (951_868_800_000, "2000-03-01 00:00:00 +0000 UTC"),
            (4_107_542_399_999, "2100-02-28 23:59:59.999 +0000 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 +0000 UTC"),
            (1_735_689_599_000, "2024-12-31 23:59:59 +0000 UTC"),
            (-1, "1969-12-31 23:59:59.999 +0000 UTC"),
        ] {
            assert_eq!(go_time(ms), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let mut expected = (1600, 1, 1);
        let first = -135_140;
        for day in first..first + 146_097 + 366 {
            assert_eq!(date(day), expected);
            let (year, month, last) = expected;
            let length = match month {
                2 => 28 + i64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (last == length, month) {
                (false, _) => (year, month, last + 1),
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
            };
        }
    }

    #[test]
    fn only_numbers_of_the_protocol_are_actions() {
        assert_eq!([0, 1, 2, -1].map(action), [Some(Action::Grant), Some(Action::Revoke), None, None]);
    }
}
