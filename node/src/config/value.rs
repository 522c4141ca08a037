//! How the value of a setting is written and read; the same text on the command line, in the environment and in the file.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A kind of value. `parse(&show(v)) == Some(v)`, except for secrets, which are not shown.
pub(super) trait Value: Sized {
    /// Whether a flag of this kind may stand without a value, meaning true.
    const SWITCH: bool = false;
    /// Whether it must not be shown.
    const SECRET: bool = false;
    fn parse(text: &str) -> Option<Self>;
    fn show(&self) -> String;
}

macro_rules! plain_values {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

plain_values!(u16, u32, u64, String);

impl Value for bool {
    const SWITCH: bool = true;
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// An empty path means none.
impl Value for Option<PathBuf> {
    fn parse(text: &str) -> Option<Self> {
        Some((!text.is_empty()).then(|| text.into()))
    }
    fn show(&self) -> String {
        self.as_ref().map(Value::show).unwrap_or_default()
    }
}

/// A list of `host:port`, separated by commas.
impl Value for Vec<String> {
    fn parse(text: &str) -> Option<Self> {
        let peers: Self = text.split(',').map(str::trim).filter(|peer| !peer.is_empty()).map(str::to_owned).collect();
        peers.iter().all(|peer| split_address(peer).is_some()).then_some(peers)
    }
    fn show(&self) -> String {
        self.join(",")
    }
}

/// A sum of numbers with units, as `1h30m`, `2m0s`, `500ms`; a plain 0 needs no unit.
impl Value for Duration {
    fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self::ZERO);
        }
        let mut total = Self::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let number: u64 = rest[..digits].parse().ok()?;
            let unit_and_rest = &rest[digits..];
            let unit_len = unit_and_rest.find(|c: char| c.is_ascii_digit()).unwrap_or(unit_and_rest.len());
            let part = match &unit_and_rest[..unit_len] {
                "h" => Self::from_secs(number.checked_mul(3600)?),
                "m" => Self::from_secs(number.checked_mul(60)?),
                "s" => Self::from_secs(number),
                "ms" => Self::from_millis(number),
                _ => return None,
            };
            total = total.checked_add(part)?;
            rest = &unit_and_rest[unit_len..];
        }
        (!text.is_empty()).then_some(total)
    }
    fn show(&self) -> String {
        let (seconds, ms) = (self.as_secs(), self.subsec_millis());
        let mut out = String::new();
        for (number, unit) in [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (ms.into(), "ms")]
        {
            if number > 0 {
                out += &format!("{number}{unit}");
            }
        }
        if out.is_empty() { "0s".to_owned() } else { out }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it can be a password.
    pub(super) fn is_usable(&self) -> bool {
        (1..=72).contains(&self.0.len())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Plain text, or `enc:` and the base64 of the text.
impl Value for Option<Secret> {
    const SECRET: bool = true;
    fn parse(text: &str) -> Option<Self> {
        let plain = match text.strip_prefix("enc:") {
            Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?,
            None => text.to_owned(),
        };
        Some(Some(Secret(plain)))
    }
    fn show(&self) -> String {
        self.as_ref().map(|_| "***".to_owned()).unwrap_or_default()
    }
}

macro_rules! choices {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal,)* }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)*
        }

        impl Value for $name {
            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $text,)*
                }
                .to_owned()
            }
        }
    };
}

choices! {
    /// Form of the log.
    LogFormat {
        /// A line of text for people.
        Text = "text",
        /// A JSON object per line.
        Json = "json",
    }
}

choices! {
    /// Least severity that is logged.
    LogLevel {
        /// Only what somebody has to look at.
        Error = "error",
        /// What may need attention.
        Warn = "warn",
        /// Starts, stops and changes of state.
        Info = "info",
        /// What happens to single calls.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// Host and port of `host:port`, where an IPv6 host stands in brackets; none when it is something else.
fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'))?;
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Whether `host:port` can be reached from this machine only.
pub(super) fn is_loopback(address: &str) -> bool {
    split_address(address)
        .is_some_and(|(host, _)| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()))
}
