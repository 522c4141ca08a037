use alhambra_raft::env::Clock;
use alhambra_storage::vfs::Vfs;

use super::token::epoch_of;
use super::*;
use crate::auth::first_user;

const LIMITS: Limits = Limits {
    sessions_max: 2,
    idle_max: Duration::from_secs(120),
    age_max: Duration::from_secs(600),
    token_life: Duration::from_secs(60),
};
const ME: u64 = 7;
const OTHER: u64 = 8;
const EPOCH: TxId = TxId(3);

/// Wall clock that goes with the virtual time.
#[derive(Debug)]
struct Virtual(Instant);

impl Clock for Virtual {
    fn now_unix_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

fn sessions() -> Sessions {
    let vfs: Arc<dyn Vfs> = Arc::new(alhambra_storage::vfs::mem::MemVfs::new());
    let env = Env { clock: Arc::new(Virtual(Instant::now())), ..Env::production(vfs) };
    Sessions::new(env, NodeKey::from_secret(&[7; 32]).unwrap(), LIMITS)
}

fn user(name: &str) -> Arc<User> {
    Arc::new(User { name: name.to_owned(), ..first_user("hash".to_owned(), 0) })
}

fn open(sessions: &Sessions, name: &str) -> Result<Arc<Session>> {
    sessions.open(ME, user(name), EPOCH, "defaultdb".into())
}

fn text_of<T: std::fmt::Debug>(result: Result<T>) -> String {
    tonic::Status::from(result.unwrap_err()).message().to_owned()
}

async fn wait(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

/// As another node would make it anew.
fn adopt(sessions: &Sessions, text: &str) -> Option<Arc<Session>> {
    let claim = Claim::read(text).unwrap().claim;
    let (user, database) = (user(&claim.user), claim.database.clone().unwrap());
    sessions.adopt(OTHER, text, claim, user, (TxId(0), database)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_used_session_lives_and_an_idle_one_ends() {
    let sessions = sessions();
    let session = open(&sessions, "u").unwrap();
    let claim = Claim::read(session.text()).unwrap().claim;
    assert_eq!(
        (claim.owner, claim.epoch, &*claim.user, claim.database.as_deref()),
        (ME, EPOCH, "u", Some("defaultdb"))
    );
    assert_eq!(claim.expires_ms - claim.issued_ms, 600_000);
    for _ in 0..3 {
        wait(119).await;
        assert!(sessions.refresh(session.text()).is_some());
    }
    wait(120).await;
    assert!(sessions.refresh(session.text()).is_none());
    assert_eq!(sessions.count(), 0);
    assert!(sessions.ended().lock().contains(&session.end().id), "nobody makes it anew");
}

#[tokio::test(start_paused = true)]
async fn looking_at_a_session_does_not_use_it() {
    let sessions = sessions();
    let session = open(&sessions, "u").unwrap();
    wait(119).await;
    assert!(sessions.find(session.text()).is_some());
    wait(1).await;
    assert!(sessions.find(session.text()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_at_its_age_however_busy() {
    let sessions = sessions();
    let session = open(&sessions, "u").unwrap();
    for _ in 0..5 {
        wait(100).await;
        assert!(sessions.refresh(session.text()).is_some());
    }
    wait(100).await;
    assert!(sessions.refresh(session.text()).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_number_of_sessions_is_bounded_and_the_guard_makes_room() {
    let sessions = sessions();
    let first = open(&sessions, "u").unwrap();
    open(&sessions, "u").unwrap();
    assert_eq!(text_of(open(&sessions, "u")), "can not create new session: max sessions number reached");
    wait(121).await;
    sessions.sweep();
    assert!(sessions.ended().lock().contains(&first.end().id), "nobody makes it anew");
    assert!(open(&sessions, "u").is_ok());
}

#[tokio::test(start_paused = true)]
async fn only_the_whole_text_finds_a_session() {
    let sessions = sessions();
    let session = open(&sessions, "u").unwrap();
    let text = session.text();
    for at in 0..text.len() {
        let mut other = text.as_bytes().to_vec();
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        assert!(sessions.refresh(std::str::from_utf8(&other).unwrap()).is_none(), "character {at}");
        assert!(sessions.refresh(&text[..at]).is_none());
    }
    assert!(sessions.refresh(text).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_made_anew_begins_to_idle_anew_but_keeps_its_age() {
    let (owner, other) = (sessions(), sessions());
    let session = open(&owner, "u").unwrap();
    wait(110).await;
    let anew = adopt(&other, session.text()).unwrap();
    assert_eq!((anew.owner(), &*anew.database()), (ME, "defaultdb"));
    assert!(Arc::ptr_eq(&anew, &adopt(&other, session.text()).unwrap()), "once");
    for _ in 0..4 {
        wait(119).await;
        assert!(other.refresh(session.text()).is_some());
    }
    wait(14).await;
    assert!(other.refresh(session.text()).is_none(), "600 seconds after it was opened");
}

#[tokio::test(start_paused = true)]
async fn an_idle_copy_is_forgotten_and_ends_nothing() {
    let (owner, other) = (sessions(), sessions());
    let session = open(&owner, "u").unwrap();
    let over: [&dyn Fn(); 3] = [
        &|| assert!(other.find(session.text()).is_none()),
        &|| other.sweep(),
        // A call finds it at the moment at which it is over.
        &|| assert!(adopt(&other, session.text()).is_some()),
    ];
    for look in over {
        let copy = adopt(&other, session.text()).unwrap();
        wait(120).await;
        look();
        assert!(!other.by_id(&copy.end().id).is_some_and(|held| Arc::ptr_eq(&held, &copy)), "forgotten");
        assert!(!other.ended().lock().contains(&copy.end().id), "it may be in use elsewhere");
    }
    wait(240).await;
    assert!(adopt(&other, session.text()).is_none(), "its age is the claim's");
    assert!(!other.ended().lock().contains(&session.end().id));
}

#[tokio::test(start_paused = true)]
async fn what_its_owner_has_made_anew_ends_when_idle() {
    let (before, after) = (sessions(), sessions());
    let session = open(&before, "u").unwrap();
    let claim = Claim::read(session.text()).unwrap().claim;
    let adopt = || after.adopt(ME, session.text(), claim.clone(), user("u"), (TxId(0), "defaultdb".into())).unwrap();
    adopt().unwrap();
    wait(120).await;
    assert!(adopt().is_none() && adopt().is_none());
    assert!(after.ended().lock().contains(&session.end().id));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_ended_is_not_made_anew() {
    let (owner, other) = (sessions(), sessions());
    let session = open(&owner, "u").unwrap();
    other.end(session.end());
    assert!(adopt(&other, session.text()).is_none());
    assert_eq!(other.count(), 0);
    owner.end(session.end());
    assert!(owner.refresh(session.text()).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_latest_selection_counts_in_whatever_order_they_are_heard_of() {
    let sessions = sessions();
    let session = open(&sessions, "u").unwrap();
    session.select(TxId(9), "late".into());
    session.select(TxId(8), "early".into());
    assert_eq!(session.selected(), (TxId(9), "late".into()));
    let claim = Claim::read(session.text()).unwrap().claim;
    sessions.adopt(ME, session.text(), claim.clone(), user("u"), (TxId(0), "defaultdb".into())).unwrap();
    assert_eq!(&*session.database(), "late");
    sessions.adopt(ME, session.text(), claim, user("u"), (TxId(10), "latest".into())).unwrap();
    assert_eq!(&*session.database(), "latest");
}

#[tokio::test(start_paused = true)]
async fn tokens_say_what_they_are_for_and_when_they_end() {
    let sessions = sessions();
    let token = sessions.issue(Kind::Token, ME, user("u"), EPOCH, None);
    let found = sessions.tokens().verified(&token).unwrap();
    assert_eq!((found.database(), &*found.user().name), (None, "u"));
    assert!(sessions.tokens().verified(&token[1..]).is_none());
    let claim = found.claim();
    assert_eq!((claim.owner, claim.epoch, claim.expires_ms - claim.issued_ms), (ME, EPOCH, 60_000));
    assert!(!claim.is_over(claim.expires_ms - 1) && claim.is_over(claim.expires_ms));
    let bound = sessions.issue(Kind::Token, ME, user("u"), EPOCH, Some("db".into()));
    assert_eq!(sessions.tokens().verified(&bound).unwrap().database().as_deref(), Some("db"));
}

#[tokio::test(start_paused = true)]
async fn logins_are_counted_for_each_user_and_epoch() {
    let sessions = sessions();
    let tokens = sessions.tokens();
    for _ in 0..2 {
        tokens.count_login("u", EPOCH);
    }
    tokens.count_login("v", EPOCH);
    assert!(tokens.take_login("u"));
    assert_eq!((tokens.logins("u"), tokens.logins("v"), tokens.logins("w")), (1, 1, 0));
    assert!(tokens.take_login("u") && !tokens.take_login("u"));
    tokens.count_login("v", TxId(9));
    assert_eq!(tokens.logins("v"), 1, "what ended all tokens ended the logins before");
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_verified_tokens_is_bounded() {
    let sessions = sessions();
    let text = sessions.issue(Kind::Token, ME, user("u"), EPOCH, None);
    let claim = Claim::read(&text).unwrap().claim;
    for n in 0..=crate::limits::TOKENS_VERIFIED_MAX {
        let text = format!("{n:0>24}");
        sessions.tokens().remember(Arc::new(Token::new(&text, claim.clone(), user("u"))));
    }
    assert!(sessions.tokens().verified(&text).is_none());
    assert!(sessions.tokens().verified(&format!("{:0>24}", crate::limits::TOKENS_VERIFIED_MAX)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_changed_user_loses_sessions_and_tokens_and_one_that_logged_out_its_tokens() {
    let sessions = sessions();
    let (kept, changed) = (open(&sessions, "kept").unwrap(), open(&sessions, "changed").unwrap());
    let tokens = ["kept", "changed", "gone"].map(|name| {
        sessions.tokens().count_login(name, EPOCH);
        sessions.issue(Kind::Token, ME, user(name), EPOCH, None)
    });
    let alive = || tokens.each_ref().map(|token| sessions.tokens().verified(token).is_some());
    sessions.user_changed(|_| Some((EPOCH, Some(TxId(1)))));
    assert!(sessions.refresh(kept.text()).is_some() && sessions.refresh(changed.text()).is_some());
    assert_eq!(alive(), [true; 3]);

    sessions.user_changed(|name| match name {
        "kept" => Some((EPOCH, None)),
        "changed" => Some((TxId(4), None)),
        _ => None,
    });
    assert!(sessions.refresh(kept.text()).is_some() && sessions.refresh(changed.text()).is_none());
    assert_eq!(alive(), [true, false, false]);
    assert_eq!(["kept", "changed", "gone"].map(|name| sessions.tokens().logins(name)), [1, 0, 0]);

    assert_eq!(epoch_of((EPOCH, Some(TxId(5)))), TxId(5));
    sessions.user_changed(|_| Some((EPOCH, Some(TxId(5)))));
    assert!(sessions.refresh(kept.text()).is_some(), "Logout is about tokens");
    assert_eq!(alive(), [false; 3]);
    assert_eq!(sessions.tokens().logins("kept"), 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_have_expired_are_forgotten() {
    let sessions = sessions();
    let token = sessions.issue(Kind::Token, ME, user("u"), EPOCH, None);
    wait(60).await;
    sessions.user_changed(|_| Some((EPOCH, None)));
    assert!(sessions.tokens().verified(&token).is_none());
}
