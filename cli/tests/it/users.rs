//! `alhambra user`: users, their passwords and permissions, by commands, at the prompt and at a terminal.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{Demo, alhambra, free_base_port, run, stderr, stdout, wait_until};

const ADA: &str = "Ada-pass-1";
const NEW: &str = "Other-pass-2";

struct Home {
    demo: Demo,
    folder: tempfile::TempDir,
}

impl Home {
    fn start() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let demo = Demo::start(&folder.path().join("demo"), 1, free_base_port(1));
        Home { demo, folder }
    }

    /// A command of this user.
    fn command(&self, user: &str, password: &str, arguments: &[&str]) -> Command {
        let mut command = alhambra(arguments);
        command.env("ALHAMBRA_ENDPOINT", self.demo.endpoint_list());
        command.env("ALHAMBRA_STATE_DIR", self.folder.path().join("states"));
        command.env("ALHAMBRA_USERNAME", user).env("ALHAMBRA_PASSWORD", password);
        command
    }

    fn admin(&self, arguments: &[&str]) -> Output {
        run(&mut self.command("immudb", "immudb", arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.admin(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    /// Whether the user can write into this database.
    fn writes(&self, user: &str, password: &str, database: &str) -> Result<(), String> {
        let output = run(&mut self.command(user, password, &["set", "k", "v", "--database", database]));
        if output.status.success() { Ok(()) } else { Err(stderr(&output)) }
    }

    fn file(&self, content: &str) -> String {
        let path = self.folder.path().join("password");
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// The command with this on its standard input.
fn fed(mut command: Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn users_are_made_changed_and_locked_out() {
    let home = Home::start();
    home.json(&["database", "create", "orders"]);
    let file = home.file(&format!("{ADA}\nnot this\n"));
    let made = home.json(&["user", "create", "ada", "readwrite", "orders", "--new-password-file", &file]);
    assert_eq!(made, json!({"user": "ada", "done": "created"}));
    home.writes("ada", ADA, "orders").unwrap();
    assert!(home.writes("ada", ADA, "defaultdb").unwrap_err().contains("permission"));

    let users = home.json(&["user", "list"]);
    let users = users["users"].as_array().unwrap();
    let [ada, immudb] = &users[..] else { panic!("{users:?}") };
    assert_eq!((&ada["user"], &ada["active"], &ada["created_by"]), (&json!("ada"), &json!(true), &json!("immudb")));
    assert_eq!(ada["permissions"], json!([{"database": "orders", "permission": "readwrite"}]));
    assert!(ada["sql_privileges"].as_array().unwrap().contains(&json!({"database": "orders", "privilege": "INSERT"})));
    assert!(immudb["permissions"].to_string().contains("sysadmin"), "{immudb}");
    assert_eq!(stdout(&home.admin(&["user", "list", "--output", "raw"])), "ada\nimmudb\n");
    let own = run(&mut home.command("ada", ADA, &["user", "list", "--output", "raw", "--database", "orders"]));
    assert_eq!(stdout(&own), "ada\n", "{}", stderr(&own));

    home.json(&["user", "permission", "grant", "ada", "read", "orders"]);
    home.json(&["user", "permission", "grant", "ada", "readwrite", "defaultdb"]);
    assert!(home.writes("ada", ADA, "orders").is_err());
    home.writes("ada", ADA, "defaultdb").unwrap();
    let table = stdout(&home.admin(&["user", "list"]));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(rows[0], ["user", "active", "database", "permission"]);
    assert_eq!(rows[1..3], [["ada", "yes", "defaultdb", "readwrite"], ["ada", "yes", "orders", "read"]]);
    home.json(&["user", "permission", "revoke", "ada", "readwrite", "defaultdb"]);
    assert!(home.writes("ada", ADA, "defaultdb").is_err());

    home.json(&["user", "permission", "grant", "ada", "admin", "orders"]);
    assert_eq!(home.json(&["user", "deactivate", "ada"])["done"], "not active any more");
    assert!(home.writes("ada", ADA, "orders").unwrap_err().contains("not active"));
    home.json(&["user", "activate", "ada"]);
    home.writes("ada", ADA, "orders").unwrap();

    // Another password, from standard input; the old one is worth nothing.
    let command = home.command("immudb", "immudb", &["user", "passwd", "ada", "--new-password-file", "-"]);
    let output = fed(command, &format!("{NEW}\n"));
    assert!(output.status.success() && !stdout(&output).contains(NEW), "{}", stderr(&output));
    assert!(home.writes("ada", ADA, "orders").unwrap_err().contains("invalid user name or password"));
    home.writes("ada", NEW, "orders").unwrap();

    // The first administrator's, which takes the present one: that of the login.
    let output = home.admin(&["user", "changepassword", "immudb", "--new-password-file", &home.file(ADA)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.admin(&["user", "list"]).status.code(), Some(1));
    assert!(run(&mut home.command("immudb", ADA, &["user", "list"])).status.success());
    assert_eq!(home.demo.stop(), Some(0));
}

#[test]
fn what_is_wrong_about_a_user_is_said_and_changes_nothing() {
    let home = Home::start();
    let good = home.file(ADA);
    let create = ["user", "create", "ada", "read", "defaultdb", "--new-password-file"];
    assert!(home.admin(&[&create[..], &[&good]].concat()).status.success());
    let before = stdout(&home.admin(&["user", "list"]));
    let weak = home.folder.path().join("weak");
    std::fs::write(&weak, "short\n").unwrap();
    let weak = weak.to_str().unwrap();
    for (arguments, code, what) in [
        (&["user", "create", "bob", "read"][..], 2, "no terminal"),
        (&["user", "create", "bob", "read", "--new-password-file", weak], 2, "--allow-weak"),
        (&["user", "create", "bob", "read", "--new-password-file", "-"], 2, "is empty"),
        (&["user", "create", "bob", "read", "--new-password-file", "/nowhere"], 1, "reading the new password"),
        (&["user", "create", "bob", "everything", "--new-password-file", &good], 2, "readwrite"),
        (&["user", "create", "bob", "read", "nowhere", "--new-password-file", &good], 3, "does not exist"),
        (&["user", "create", "bo b", "read", "--new-password-file", &good], 1, "user"),
        (&["user", "create", "ada", "read", "--new-password-file", &good], 1, "user already exists"),
        (&["user", "passwd", "bob", "--new-password-file", &good], 3, "was not found"),
        (&["user", "permission", "grant", "bob", "read", "defaultdb"], 3, "not found"),
        (&["user", "permission", "grant", "ada", "read", "nowhere"], 3, "does not exist"),
        (&["user", "permission", "grant", "immudb", "read", "defaultdb"], 1, "changing your own permissions"),
        (&["user", "deactivate", "bob"], 3, "not found"),
        (&["user", "deactivate", "immudb"], 1, "changing your own status"),
    ] {
        let output = home.admin(arguments);
        assert_eq!((output.status.code(), &*stdout(&output)), (Some(code), ""), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(what), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains(ADA), "{arguments:?}");
    }
    assert_eq!(stdout(&home.admin(&["user", "list"])), before);
    let allowed = home.admin(&["user", "create", "bob", "read", "--allow-weak", "--new-password-file", weak]);
    assert!(allowed.status.success(), "{}", stderr(&allowed));
    assert_eq!(home.demo.stop(), Some(0));
}

#[test]
fn users_are_made_at_the_prompt_and_their_passwords_asked_for_at_a_terminal() {
    let home = Home::start();
    let lines = format!(
        "user create ada readwrite --new-password-file -\n{ADA}\nuser list --output raw\nlogin ada\n{ADA}\nset k v\n"
    );
    let output = fed(home.command("immudb", "immudb", &["shell"]), &lines);
    assert!(output.status.success() && stdout(&output).contains("ada\nimmudb\n"), "{}", stderr(&output));

    // At a terminal, where nothing that is typed is seen.
    let passwd = |term: &str, second: &str| {
        let mut terminal = Terminal::start(term, &home.command("immudb", "immudb", &["user", "passwd", "ada"]));
        terminal.answer("new password of ada: ", NEW);
        terminal.answer("the same again: ", second);
        terminal.end()
    };
    let mut terminal = Terminal::start("xterm", &home.command("immudb", "immudb", &["user", "passwd", "ada"]));
    terminal.answer("new password of ada: ", "half\u{3}");
    let (success, seen) = terminal.end();
    assert!(!success && seen.contains("nothing was entered") && !seen.contains("half"), "{seen}");
    let (success, seen) = passwd("dumb", ADA);
    assert!(!success && seen.contains("two passwords"), "{seen}");
    assert!(!seen.contains(NEW) && !seen.contains(ADA), "{seen}");
    home.writes("ada", ADA, "defaultdb").unwrap();
    let (success, seen) = passwd("xterm", NEW);
    assert!(success && seen.contains("has a new password"), "{seen}");
    assert!(!seen.contains(NEW), "{seen}");
    home.writes("ada", NEW, "defaultdb").unwrap();
    assert_eq!(home.demo.stop(), Some(0));
}

/// A command at a terminal of its own, and a person who waits for each question.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    pub fn start(term: &str, command: &Command) -> Terminal {
        let words: Vec<&str> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(|w| w.to_str().unwrap()).collect();
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).env_clear();
        script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", term);
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script of util-linux");
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut output, seen) = (child.stdout.take().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        });
        Terminal { keyboard: child.stdin.take().unwrap(), child, screen }
    }

    fn answer(&mut self, question: &str, answer: &str) {
        wait_until(question, || self.screen.lock().unwrap().contains(question).then_some(()));
        self.keyboard.write_all(format!("{answer}\r").as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Whether the command succeeded, and all that was to be seen.
    pub fn end(mut self) -> (bool, String) {
        let status = wait_until("the end of the command", || self.child.try_wait().unwrap());
        let screen = Arc::downgrade(&self.screen);
        drop(self.keyboard);
        // The reader has let go of it when it has seen the end.
        wait_until("all of the screen", || (screen.strong_count() == 1).then_some(()));
        let seen = self.screen.lock().unwrap().clone();
        (status.success(), seen)
    }
}
