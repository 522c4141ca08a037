//! Secrets are asked for at a terminal, where nobody sees them, or read from a file; they are never words of the command line, which
//! every user of the machine can see.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read, Write as _};
use std::path::Path;

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use crate::failure::{Failure, Kind, OrFail};

/// Fewest characters of a password that is not called weak.
const LENGTH_MIN: usize = 8;
/// Name of a file that stands for standard input.
const STANDARD_INPUT: &str = "-";
/// The terminal of whoever started the command.
const TERMINAL: &str = "/dev/tty";

/// Where a new password comes from, and how good it has to be.
#[derive(Clone, Debug, clap::Args)]
pub struct NewPassword {
    /// File whose first line is the new password, - for standard input; without it a terminal asks
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<std::path::PathBuf>,
    /// Take a password of fewer than 8 characters, or without a capital, a digit or a symbol
    #[arg(long)]
    allow_weak: bool,
}

impl NewPassword {
    /// Reads it, or asks for it twice.
    pub fn get(&self, name: &str) -> Result<String, Failure> {
        let password = match &self.new_password_file {
            Some(file) if file != Path::new(STANDARD_INPUT) || !io::stdin().is_terminal() => first_line(file)?,
            Some(_) | None => ask_twice(name)?,
        };
        if password.is_empty() {
            return Err(Failure::new(Kind::Usage, "the new password is empty", "give at least one character"));
        }
        if !self.allow_weak && is_weak(&password) {
            return Err(Failure::new(
                Kind::Usage,
                "the new password is weak",
                format!(
                    "take {LENGTH_MIN} characters or more with a capital, a digit and a symbol, or say --allow-weak"
                ),
            ));
        }
        Ok(password)
    }
}

/// As the original's tools judge it.
fn is_weak(password: &str) -> bool {
    let has = |is: fn(char) -> bool| password.chars().any(is);
    password.chars().count() < LENGTH_MIN
        || !has(char::is_uppercase)
        || !has(|c| c.is_ascii_digit())
        || !has(|c| !c.is_alphanumeric() && !c.is_whitespace())
}

fn first_line(file: &Path) -> Result<String, Failure> {
    let line = if file == Path::new(STANDARD_INPUT) {
        line_of(&mut io::stdin().lock())
    } else {
        File::open(file).and_then(|file| line_of(&mut BufReader::new(file)))
    };
    line.or_fail(format_args!("reading the new password from {}", file.display()), "name a file of one line of text")
}

fn line_of(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask_twice(name: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Kind::Usage,
            "there is no terminal to ask for the new password at",
            "name a file whose first line it is: --new-password-file FILE, or - for standard input",
        ));
    }
    let first = ask(&format!("new password of {name}: "))?;
    if ask("the same again: ")? == first {
        return Ok(first);
    }
    Err(Failure::failed("nothing was done: these were two passwords", "give the same one twice"))
}

/// Asks at the terminal, also when the answer of the command goes elsewhere. Whatever kind of terminal it is, it shows nothing of
/// what is entered, from before the question on.
pub fn ask(prompt: &str) -> Result<String, Failure> {
    let asked = || {
        let terminal = File::options().read(true).write(true).open(TERMINAL)?;
        let quiet = Quiet::on(&terminal)?;
        (&terminal).write_all(prompt.as_bytes())?;
        let entered = entered(&mut &terminal);
        drop(quiet);
        if entered.is_err() {
            (&terminal).write_all(b"\n")?;
        }
        entered
    };
    asked().or_fail("reading the password", "give the command again at a terminal")
}

/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

/// A line of a terminal; an error when whoever is asked gives up, by Ctrl-C or the end of the input.
fn entered(terminal: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match terminal.read(&mut byte)? {
            1 if byte[0] == b'\n' => break,
            1 if byte[0] != INTERRUPT => line.extend(byte),
            _ => return Err(io::Error::other("nothing was entered")),
        }
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A terminal that does not show what is entered, but that a line has ended. Ctrl-C ends a line as well, and not the process, which
/// would leave the terminal as it is.
struct Quiet<'t> {
    terminal: &'t File,
    before: Termios,
}

impl<'t> Quiet<'t> {
    fn on(terminal: &'t File) -> io::Result<Self> {
        let before = termios::tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        quiet.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
        termios::tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that has gone shows nothing.
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_weak_when_it_is_short_or_of_one_kind() {
        for weak in ["", "Ab-1567", "abcdefg-1", "Abcdefg-h", "Abcdefgh1", "Abcdefg 1"] {
            assert!(is_weak(weak), "{weak}");
        }
        for good in ["Abcdef-1", "Übung#99", "many Words, 1 symbol"] {
            assert!(!is_weak(good), "{good}");
        }
    }

    #[test]
    fn one_line_is_read_and_the_next_stays() {
        let mut reader = &b"first \r\nsecond"[..];
        assert_eq!(line_of(&mut reader).unwrap(), "first ");
        assert_eq!(line_of(&mut reader).unwrap(), "second");
        assert_eq!(line_of(&mut reader).unwrap(), "");
    }

    #[test]
    fn whoever_gives_up_has_entered_nothing() {
        assert_eq!(entered(&mut &b"pass \nmore"[..]).unwrap(), "pass ");
        assert_eq!(entered(&mut &b"\n"[..]).unwrap(), "");
        for given_up in [&b""[..], b"pas", b"pass\x03", b"\x03\n"] {
            assert_eq!(entered(&mut &given_up[..]).unwrap_err().to_string(), "nothing was entered");
        }
    }
}
