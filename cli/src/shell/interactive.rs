//! `alhambra shell`: the client commands at a prompt, with line editing, history and completion.
//!
//! A line is a command line without its first word. Where to connect, as whom and to which database stands in the flags of
//! `shell` and is added to every line that does not say otherwise; `use` and `login` change it. Lines that come from a pipe
//! are not echoed, and the first one that fails ends the shell with its exit code.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use crate::connect::{Connect, Target};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::print_raw;
use crate::secret::ask;
use crate::trusted::Trusted;
use crate::{Cli, Command, block_on};

/// Lines kept in the history file.
const HISTORY_LINES: usize = 10_000;
/// What only the shell knows.
const OWN: [(&str, &str); 5] = [
    ("use", "use DATABASE: select another database"),
    ("login", "login USER: become another user; asks for the password"),
    ("logout", "forget who you are; what needs a login is refused then"),
    ("clear", "clear the screen"),
    ("exit", "leave (also Ctrl-D)"),
];
/// Commands that run servers or need another data folder; they have no place at a prompt.
const OUTSIDE: [&str; 10] =
    ["serve", "demo", "shell", "bench", "fsck", "config", "completions", "mangen", "cluster", "import"];

/// Flags of `alhambra shell`.
#[derive(Debug, clap::Args)]
pub struct ShellArgs {
    #[command(flatten)]
    connect: Connect,
    /// File of the lines that were entered before [default: alhambra/history below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "FILE", env = "ALHAMBRA_HISTORY")]
    history: Option<PathBuf>,
}

/// Reads lines until the end, and does what they say.
pub fn run(args: &ShellArgs) -> Result<(), Failure> {
    let (mut target, tls) = (args.connect.target()?, args.connect.tls_flags());
    enter(&target)?;
    let terminal = std::io::stdin().is_terminal();
    let config = Config::builder().max_history_size(HISTORY_LINES).or_fail("setting the history up", "report this")?;
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config.auto_add_history(false).build())
        .or_fail("opening the terminal", "use another one")?;
    editor.set_helper(Some(Words::new()));
    let history = args.history.clone().or_else(default_history).filter(|_| terminal);
    if let Some(path) = &history {
        // There is none yet, or it is nobody's loss.
        let _ = editor.load_history(path);
        print_raw(format!(
            "connected as {} to {}; help lists the commands, Ctrl-D ends\n",
            target.username,
            target.endpoints.join(", ")
        ))?;
    }
    loop {
        let prompt = if terminal { format!("{}@{}> ", target.username, target.database) } else { String::new() };
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).or_fail("reading a line", "start the shell again"),
        };
        // A secret does not belong into a file.
        if let Some(path) = history.as_ref().filter(|_| !line.trim().is_empty() && !line.contains("--password")) {
            let _ = editor.add_history_entry(line.as_str());
            save(&mut editor, path);
        }
        match act(&line, &mut target, &tls, &mut editor).map_err(Failure::at_prompt) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(failure) if terminal => eprintln!("{failure}"),
            Err(failure) => return Err(failure),
        }
    }
}

/// The history is a convenience: that it cannot be written is no reason to stop.
fn save(editor: &mut Editor<Words, FileHistory>, path: &PathBuf) {
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let _ = editor.append_history(path);
}

fn default_history() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local").join("state")))?;
    Some(state.join("alhambra").join("history"))
}

/// Finds out whether the target takes this user into this database.
fn enter(target: &Target) -> Result<(), Failure> {
    block_on(async {
        let trusted = Trusted::enter(target.clone()).await?;
        trusted.close(Ok(())).await
    })
}

/// Does what a line says; false when it is the last one.
fn act(
    line: &str,
    target: &mut Target,
    tls: &[String],
    editor: &mut Editor<Words, FileHistory>,
) -> Result<bool, Failure> {
    let words = split(line)?;
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {}
        [comment, ..] if comment.starts_with('#') => {}
        ["exit" | "quit"] => return Ok(false),
        ["help" | "?"] => print_raw(help())?,
        ["clear"] => editor.clear_screen().or_fail("clearing the screen", "go on")?,
        ["use", database] => {
            let next = Target { database: (*database).to_owned(), ..target.clone() };
            enter(&next)?;
            *target = next;
        }
        ["login", username] => {
            let password = read_secret(editor, &format!("password of {username}: "))?;
            let next = Target { username: (*username).to_owned(), password, login: true, ..target.clone() };
            enter(&next)?;
            *target = next;
        }
        ["logout"] => {
            *target = Target { login: false, password: String::new(), ..target.clone() };
        }
        ["use" | "login", ..] => {
            return Err(Failure::new(Kind::Usage, "one word has to follow", "use DATABASE, or login USER"));
        }
        [outside, ..] if OUTSIDE.contains(outside) => {
            return Err(Failure::new(
                Kind::Usage,
                format!("{outside} is not for the shell"),
                format!("call it from outside: alhambra {outside} --help"),
            ));
        }
        _ => match Cli::try_parse_from(arguments(words, target, tls)) {
            Ok(cli) => {
                let own = matches!(&cli.command, Command::User(args) if args.gives_password_to(&target.username));
                crate::run(cli)?;
                if own {
                    eprintln!("to go on with the new password: login {}", target.username);
                }
            }
            // Help that was asked for is no failure.
            Err(error) if !error.use_stderr() => print_raw(error.to_string())?,
            Err(error) => {
                let text = error.to_string();
                let text = text.split("\n\nUsage:").next().unwrap_or_default().trim();
                let text = text.strip_prefix("error: ").unwrap_or(text).to_owned();
                return Err(Failure::new(Kind::Usage, text, "help lists the commands; COMMAND --help its flags"));
            }
        },
    }
    Ok(true)
}

/// A line as words, by the rules of a shell.
fn split(line: &str) -> Result<Vec<String>, Failure> {
    shlex::split(line).ok_or_else(|| {
        Failure::new(Kind::Usage, "a quote or a backslash is not closed", "write blanks in values as \"two words\"")
    })
}

/// The command line that the words stand for: with where to connect and as whom, unless they say it or cannot.
fn arguments(words: Vec<String>, target: &Target, tls: &[String]) -> Vec<String> {
    let takes = |flag: &str| {
        let mut command = Cli::command();
        let mut found = None;
        for word in &words {
            let Some(next) = command.find_subcommand(word).cloned() else { break };
            command = next.clone();
            found = Some(next);
        }
        found.is_some_and(|command| command.get_arguments().any(|argument| argument.get_long() == Some(flag)))
    };
    let endpoints = target.endpoints.join(",");
    let all = [
        ("endpoint", &endpoints),
        ("username", &target.username),
        ("password", &target.password),
        ("database", &target.database),
    ];
    let mut added: Vec<String> = all
        .into_iter()
        .filter(|(flag, _)| takes(flag))
        .filter(|(flag, _)| {
            let (alone, with_value) = (format!("--{flag}"), format!("--{flag}="));
            !words.iter().any(|word| *word == alone || word.starts_with(&with_value))
        })
        .map(|(flag, value)| format!("--{flag}={value}"))
        .collect();
    if !target.login && takes("no-login") {
        added.push("--no-login".to_owned());
    }
    if takes("tls") {
        added.extend(tls.iter().cloned());
    }
    // Before a "--", after which everything is a value.
    let at = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut line = vec!["alhambra".to_owned()];
    line.extend(words[..at].iter().cloned());
    line.extend(added);
    line.extend(words[at..].iter().cloned());
    line
}

fn commands() -> Vec<(String, String)> {
    let about = |command: &clap::Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let known = Cli::command();
    let known = known.get_subcommands().filter(|command| !OUTSIDE.contains(&command.get_name()));
    let own = OWN.iter().map(|(name, about)| ((*name).to_owned(), (*about).to_owned()));
    known.map(|command| (command.get_name().to_owned(), about(command))).chain(own).collect()
}

fn help() -> String {
    let mut table = crate::output::Table::new(&["command", "what it does"]);
    commands().into_iter().for_each(|(name, about)| table.row([name, about]));
    table.render()
}

/// Reads a secret: at a terminal without showing it, otherwise the next line.
fn read_secret(editor: &mut Editor<Words, FileHistory>, prompt: &str) -> Result<String, Failure> {
    if std::io::stdin().is_terminal() {
        return ask(prompt);
    }
    editor.readline(prompt).or_fail("reading the password", "give the login again")
}

/// Completes commands, their subcommands and flags.
struct Words {
    commands: clap::Command,
}

impl Words {
    fn new() -> Self {
        Self { commands: Cli::command() }
    }

    /// What the last word of `before` can become.
    fn candidates(&self, before: &str) -> Vec<String> {
        let (done, word) = before.rsplit_once(char::is_whitespace).unwrap_or(("", before));
        let mut command = &self.commands;
        for word in done.split_whitespace() {
            match command.find_subcommand(word) {
                Some(next) => command = next,
                None => break,
            }
        }
        let top = std::ptr::eq(command, &self.commands);
        let outside = |name: &str| top && (OUTSIDE.contains(&name) || !done.trim().is_empty());
        let mut all: Vec<String> = (command.get_subcommands().map(clap::Command::get_name))
            .filter(|name| !outside(name))
            .map(str::to_owned)
            .collect();
        if top && done.trim().is_empty() {
            all.extend(OWN.iter().map(|(name, _)| (*name).to_owned()).chain(["help".to_owned()]));
        }
        if word.starts_with('-') {
            all.extend(command.get_arguments().filter_map(|one| one.get_long()).map(|long| format!("--{long}")));
        }
        all.retain(|candidate| candidate.starts_with(word));
        all.sort();
        all
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..at];
        let start = before.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
        let pair = |name: String| Pair { display: name.clone(), replacement: format!("{name} ") };
        Ok((start, self.candidates(before).into_iter().map(pair).collect()))
    }
}

impl Highlighter for Words {}

impl Hinter for Words {
    type Hint = String;
}

impl Validator for Words {}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            endpoints: vec!["a:1".into(), "b:2".into()],
            login: true,
            username: "ada".into(),
            password: "-secret x".into(),
            database: "d".into(),
            tls: None,
            server_key: None,
            guessed: false,
        }
    }

    fn line(text: &str) -> Vec<String> {
        arguments(split(text).unwrap(), &target(), &[])
    }

    #[test]
    fn a_line_is_a_command_line_with_where_to_connect() {
        let all = ["--endpoint=a:1,b:2", "--username=ada", "--password=-secret x", "--database=d"];
        assert_eq!(line(r#"set k "two words""#), [&["alhambra", "set", "k", "two words"][..], &all].concat());
        let given = line("get k --database other --username=bob");
        assert_eq!(given, ["alhambra", "get", "k", "--database", "other", "--username=bob", all[0], all[2]]);
        assert_eq!(line("get -- -k"), [&["alhambra", "get"][..], &all, &["--", "-k"]].concat());
        let nobody = Target { login: false, ..target() };
        assert!(arguments(split("get k").unwrap(), &nobody, &[]).contains(&"--no-login".to_owned()));
        assert_eq!(line("version"), ["alhambra", "version"], "it has no such flags");
        assert!(Cli::try_parse_from(line("set k v")).is_ok());
        assert!(split("set k \"open").is_err());
    }

    #[test]
    fn words_are_completed_where_they_stand() {
        let words = Words::new();
        assert_eq!(words.candidates("his"), ["history"]);
        assert!(words.candidates("").contains(&"use".to_owned()));
        assert!(!words.candidates("").iter().any(|word| OUTSIDE.contains(&word.as_str())));
        assert_eq!(words.candidates("history k --des"), ["--desc"]);
        assert!(words.candidates("history k").is_empty(), "keys are not known");
        assert!(
            words.candidates("nothing --d").is_empty() || !words.candidates("nothing --d").contains(&"--desc".into())
        );
        for (command, _) in commands() {
            assert!(help().contains(&command));
        }
        let known = Cli::command();
        for outside in OUTSIDE {
            assert!(outside == "import" || known.find_subcommand(outside).is_some(), "{outside} is no command");
        }
    }
}
