//! Who may claim which tunnel: the credentials of `--agents`. A key is bytes that an agent shows; what is written down,
//! compared and remembered is its BLAKE3 hash, as `ptth_server` has it (its tripcode), so that neither the file nor our
//! memory holds anything to claim a tunnel with.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ptth_proto::wire::fields::Name;
use ptth_proto::wire::head::Head;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::answer::{Answer, Code};
use crate::net::name::TunnelName;

/// Base64 that is written with padding and read with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The field in which `ptth_server` shows its key.
const API_KEY: &[u8] = b"X-ApiKey";

/// Hashes that an entry may have: the key, and the one that takes its place.
const MOST_HASHES: usize = 2;

/// The hash of a key that an agent showed: what is compared and remembered, never the key. Two are compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyHash(blake3::Hash);

impl KeyHash {
    /// Of a key.
    pub fn of(key: &[u8]) -> KeyHash {
        KeyHash(blake3::hash(key))
    }

    fn parse(text: &str) -> Option<KeyHash> {
        let bytes: [u8; blake3::OUT_LEN] = BASE64.decode(text).ok()?.try_into().ok()?;
        Some(KeyHash(bytes.into()))
    }
}

/// Says nothing of the hash: the hash of a weak key is as good as the key.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// The line for the agents file that lets the holder of this key in.
pub fn hash_line(key: &str) -> String {
    format!("hash = \"{}\"", BASE64.encode(KeyHash::of(key.as_bytes()).0.as_bytes()))
}

/// Who may claim names.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Anyone may claim any name.
    #[default]
    Anyone,
    /// Those in the agents file, each their own names.
    Listed(Agents),
}

/// Why somebody may not claim a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No key was shown.
    NoKey,
    /// A key that nobody has; or two that differ, or one that can't be read.
    BadKey,
    /// The key is known, and the name is none of its own.
    NotYours,
}

impl Access {
    /// Whether the sender of this request may claim the name; if so, the hash of the key that it showed, by which it is known
    /// again.
    ///
    /// Where anyone may claim, nobody is turned away for a key: one that is not clear counts as none.
    ///
    /// # Errors
    /// When it may not.
    pub fn admit(&self, head: &Head, name: &str) -> Result<Option<KeyHash>, Denied> {
        let key = key_of(head);
        match self {
            Access::Anyone => Ok(key.ok().flatten().map(|key| KeyHash::of(&key))),
            Access::Listed(agents) => {
                let hash = KeyHash::of(&key?.ok_or(Denied::NoKey)?);
                agents.check(hash, name).map(|()| Some(hash))
            }
        }
    }
}

/// The key that a request shows: `Authorization: Bearer KEY`, `Basic` with the key as password and any user, or `X-ApiKey`. An
/// empty one is none.
///
/// # Errors
/// [`Denied::BadKey`] when it shows two that differ, or credentials that can't be read. Whoever stands in front of us might
/// have checked the other one.
pub fn key_of(head: &Head) -> Result<Option<Cow<'_, [u8]>>, Denied> {
    let mut key: Option<Cow<'_, [u8]>> = None;
    for field in head.fields.iter() {
        let shown = match field.known {
            Name::Authorization => key_of_authorization(field.value)?,
            _ if field.name.eq_ignore_ascii_case(API_KEY) => Cow::Borrowed(field.value),
            _ => continue,
        };
        if shown.is_empty() {
            continue;
        }
        if key.as_ref().is_some_and(|key| *key != shown) {
            return Err(Denied::BadKey);
        }
        key = Some(shown);
    }
    Ok(key)
}

/// The key in the value of an `Authorization`; empty for a scheme that has none.
fn key_of_authorization(value: &[u8]) -> Result<Cow<'_, [u8]>, Denied> {
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        return Ok(Cow::Borrowed(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"Basic") || rest.is_empty() {
        return Ok(Cow::Borrowed(b""));
    }
    // RFC 7617: no user has a colon in it, a password may.
    let mut pair = BASE64.decode(rest).map_err(|_| Denied::BadKey)?;
    let colon = pair.iter().position(|b| *b == b':').ok_or(Denied::BadKey)?;
    Ok(Cow::Owned(pair.split_off(colon + 1)))
}

/// What is told to an agent that may not claim this name.
pub fn refusal(denied: Denied, name: &str) -> Answer {
    let (code, text) = match denied {
        Denied::NoKey => (
            Code::NO_CREDENTIAL,
            format!(
                "This relay lets only agents that it knows claim a tunnel, and the request for `{name}` showed no \
                 credential. Give the agent one (ptth-reverse: `--token-file FILE`); others send it as `Authorization: \
                 Bearer KEY`, as the password of `Basic`, or as `X-ApiKey`."
            ),
        ),
        Denied::BadKey => (
            Code::BAD_CREDENTIAL,
            format!(
                "The credential that was shown for the tunnel `{name}` is none of those that this relay knows, or the \
                 request showed two that differ. Compare what `ptth-relay hash-key` prints for it with the relay's \
                 agents file (--agents)."
            ),
        ),
        Denied::NotYours => (
            Code::NAME_NOT_ALLOWED,
            format!(
                "The credential is known to this relay, but it may not claim the tunnel `{name}`. Choose a name that it \
                 may claim (ptth-reverse: `--name NAME`), or add this one to its `names` in the relay's agents file \
                 (--agents)."
            ),
        ),
    };
    Answer::new(code, text)
}

/// The credentials of an agents file. Clones share them.
#[derive(Clone, Debug)]
pub struct Agents(Arc<[Entry]>);

/// One `[[agent]]` table.
#[derive(Debug)]
struct Entry {
    names: Vec<Pattern>,
    hashes: Vec<KeyHash>,
}

impl Agents {
    /// Reads an agents file: TOML, a table `[[agent]]` for each credential.
    ///
    /// # Errors
    /// In one sentence that names the line, and what is to stand there. Values are never repeated: somebody may have pasted
    /// the key itself.
    pub fn parse(text: &str) -> Result<Agents, String> {
        let document = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, &span));
            format!("line {line} is no TOML: {}", error.message().replace('\n', ", "))
        })?;
        let mut entries = Vec::new();
        for (key, value) in document.get_ref() {
            let line = line_of(text, &key.span());
            if key.get_ref() != "agent" {
                return Err(format!(
                    "line {line}: there is no `{}` here; each credential is a table `[[agent]]` with `names` and `hash` \
                     below it",
                    key.get_ref().escape_debug()
                ));
            }
            let tables = value.get_ref().as_array().ok_or_else(|| {
                format!("line {line}: `agent` is written in two brackets, `[[agent]]`, for each credential")
            })?;
            for (index, table) in tables.iter().enumerate() {
                entries.push(Reader { text, table: index + 1 }.entry(table)?);
            }
        }
        if entries.is_empty() {
            return Err("there is no credential in it, so nobody could claim a tunnel: add a table `[[agent]]` with \
                        `names` and the line that `ptth-relay hash-key` prints"
                .into());
        }
        Ok(Agents(entries.into()))
    }

    /// How many tables there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none; never so, because such a file is refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with every hash, also behind one that is the same: how long it takes says nothing about which it was.
    fn check(&self, hash: KeyHash, name: &str) -> Result<(), Denied> {
        let (mut known, mut allowed) = (false, false);
        for entry in self.0.iter() {
            let may_claim = entry.names.iter().any(|pattern| pattern.matches(name));
            for own in &entry.hashes {
                let same = *own == hash;
                known |= same;
                allowed |= same & may_claim;
            }
        }
        match (known, allowed) {
            (_, true) => Ok(()),
            (true, false) => Err(Denied::NotYours),
            (false, false) => Err(Denied::BadKey),
        }
    }
}

/// The line in which a part of the text begins.
fn line_of(text: &str, part: &Range<usize>) -> usize {
    text.bytes().take(part.start).filter(|b| *b == b'\n').count() + 1
}

/// Reads one table, and knows which it is.
#[derive(Clone, Copy)]
struct Reader<'a> {
    text: &'a str,
    table: usize,
}

impl Reader<'_> {
    fn entry(self, table: &Spanned<DeValue<'_>>) -> Result<Entry, String> {
        let fields = table.get_ref().as_table().ok_or_else(|| {
            self.wrong(&table.span(), "each `agent` is a table `[[agent]]` with `names` and `hash` below it")
        })?;
        let (mut names, mut hashes) = (None, None);
        for (key, value) in fields {
            match key.get_ref().as_ref() {
                "names" => names = Some(self.names(value)?),
                "hash" => hashes = Some(self.hashes(value)?),
                other => {
                    let other = other.escape_debug();
                    let what = format!("there is no `{other}`; a table has `names` and `hash`");
                    return Err(self.wrong(&key.span(), &what));
                }
            }
        }
        let missing = |what| self.wrong(&table.span(), what);
        Ok(Entry {
            names: names
                .ok_or_else(|| missing("there is no `names`; add one, such as `names = [\"demo\", \"lab-*\"]`"))?,
            hashes: hashes
                .ok_or_else(|| missing("there is no `hash`; add the line that `ptth-relay hash-key` prints"))?,
        })
    }

    fn names(self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Pattern>, String> {
        let list = value.get_ref().as_array().filter(|list| !list.is_empty()).ok_or_else(|| {
            self.wrong(&value.span(), "`names` is a list of at least one name, such as `[\"demo\", \"lab-*\"]`")
        })?;
        let pattern = |name: &Spanned<DeValue<'_>>| {
            let pattern = name.get_ref().as_str().and_then(Pattern::parse);
            pattern.ok_or_else(|| {
                let what = "a name is 1 to 63 letters, digits, `-` and `_`, and may end in `*` for any that begin so";
                self.wrong(&name.span(), what)
            })
        };
        list.iter().map(pattern).collect()
    }

    fn hashes(self, value: &Spanned<DeValue<'_>>) -> Result<Vec<KeyHash>, String> {
        let hash = |value: &Spanned<DeValue<'_>>| {
            let hash = value.get_ref().as_str().and_then(KeyHash::parse);
            hash.ok_or_else(|| {
                let what = "`hash` is 44 characters in quotes, the base64 of a key's BLAKE3; `ptth-relay hash-key` \
                            prints the whole line";
                self.wrong(&value.span(), what)
            })
        };
        match value.get_ref().as_array() {
            None => Ok(vec![hash(value)?]),
            Some(list) if (1..=MOST_HASHES).contains(&list.len()) => list.iter().map(hash).collect(),
            Some(_) => {
                let what = "`hash` is one, or a list of two while a key is being changed; another agent has a table of \
                            its own";
                Err(self.wrong(&value.span(), what))
            }
        }
    }

    fn wrong(self, part: &Range<usize>, what: &str) -> String {
        format!("line {} (table {}): {what}", line_of(self.text, part), self.table)
    }
}

/// A name, or how those begin that are meant; in lower case.
#[derive(Debug)]
struct Pattern {
    start: String,
    /// Whether anything may follow.
    open: bool,
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let (start, open) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        let good = TunnelName::of(start.as_bytes()).is_some() || (open && start.is_empty());
        good.then(|| Pattern { start: start.to_ascii_lowercase(), open })
    }

    fn matches(&self, name: &str) -> bool {
        let name = name.as_bytes();
        let compared = if self.open { name.get(..self.start.len()) } else { Some(name) };
        compared.is_some_and(|name| name.eq_ignore_ascii_case(self.start.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptth_proto::limits::Limits;

    /// The published test value of `ptth_server`.
    const KEY: &str = "PlaypenCausalPlatformCommodeImproveCatalyze";
    const HASH: &str = "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=";

    fn request(fields: &str) -> Head {
        let mut head = Head::default();
        let text = format!("POST /demo HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        head.parse_request(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    fn basic(pair: &str) -> String {
        format!("Authorization: Basic {}\r\n", BASE64.encode(pair))
    }

    fn bearer(key: &str) -> Head {
        request(&format!("Authorization: Bearer {key}\r\n"))
    }

    fn listed(text: &str) -> Access {
        Access::Listed(Agents::parse(text).unwrap())
    }

    fn entry(names: &str, keys: &[&str]) -> String {
        let hashes = keys.iter().map(|key| hash_line(key).replace("hash = ", "")).collect::<Vec<_>>().join(", ");
        format!("[[agent]]\nnames = [{names}]\nhash = [{hashes}]\n")
    }

    #[test]
    fn the_hash_is_that_of_ptth_server() {
        assert_eq!(hash_line(KEY), format!("hash = \"{HASH}\""));
        assert!(KeyHash::parse(HASH).unwrap() == KeyHash::of(KEY.as_bytes()));
        assert!(KeyHash::parse(HASH.trim_end_matches('=')).unwrap() == KeyHash::of(KEY.as_bytes()));
        assert!(KeyHash::of(KEY.as_bytes()) != KeyHash::of(b"another"));
    }

    #[test]
    fn a_hash_is_in_no_log() {
        let access = listed(&entry("'demo'", &[KEY]));
        let text = format!("{:?} {access:?}", KeyHash::of(KEY.as_bytes()));
        assert!(text.starts_with("KeyHash(…) "), "{text}");
        let hex = blake3::hash(KEY.as_bytes()).to_hex();
        assert!(!text.contains(HASH) && !text.contains(hex.as_str()), "{text}");
    }

    #[test]
    fn each_dialect_shows_its_key_in_its_own_way() {
        for (fields, key) in [
            (String::new(), None),
            ("Authorization: Bearer abc\r\n".into(), Some("abc")),
            ("authorization:  bEARER \t abc\t\r\n".into(), Some("abc")),
            (basic("someone:abc"), Some("abc")),
            (basic(":abc"), Some("abc")),
            (basic("someone:a:b:c"), Some("a:b:c")),
            (basic("someone:abc").replace("Basic", "BASIC").replace('=', ""), Some("abc")),
            ("X-ApiKey: abc\r\n".into(), Some("abc")),
            ("x-apikey: abc\r\n".into(), Some("abc")),
            // An empty key is none, and neither is what we don't know.
            ("Authorization: Bearer\r\n".into(), None),
            ("Authorization: Basic\r\n".into(), None),
            ("Authorization:\r\nX-ApiKey:\r\n".into(), None),
            (basic("someone:"), None),
            ("Authorization: Digest username=\"a\"\r\n".into(), None),
            ("Authorization: abc\r\n".into(), None),
            ("Proxy-Authorization: Bearer abc\r\nX-Api-Key: abc\r\nCookie: X-ApiKey=abc\r\n".into(), None),
            // The same one in two places is one.
            ("Authorization: Bearer abc\r\nX-ApiKey: abc\r\n".into(), Some("abc")),
            (format!("{}X-ApiKey: abc\r\nX-ApiKey: abc\r\n", basic("a:abc")), Some("abc")),
            ("Authorization: Digest username=\"a\"\r\nX-ApiKey: abc\r\n".into(), Some("abc")),
        ] {
            let head = request(&fields);
            assert_eq!(key_of(&head).unwrap().as_deref(), key.map(str::as_bytes), "{fields}");
        }
    }

    #[test]
    fn two_keys_that_differ_are_none_that_anybody_has() {
        for fields in [
            format!("Authorization: Bearer {KEY}\r\nX-ApiKey: other\r\n"),
            format!("X-ApiKey: other\r\nAuthorization: Bearer {KEY}\r\n"),
            format!("Authorization: Bearer {KEY}\r\nAuthorization: Bearer other\r\n"),
            format!("{}X-ApiKey: {KEY}\r\n", basic("a:other")),
            format!("X-ApiKey: {KEY}\r\nX-ApiKey: other\r\n"),
            // What can't be read might be another one.
            format!("Authorization: Basic ?\r\nX-ApiKey: {KEY}\r\n"),
            "Authorization: Basic bm9jb2xvbg==\r\n".into(),
            "Authorization: Basic YTpi YTpi\r\n".into(),
            // As a proxy might join two fields.
            format!("Authorization: Bearer {KEY}, Bearer {KEY}\r\n"),
        ] {
            let head = request(&fields);
            let access = listed(&entry("'*'", &[KEY, "other"]));
            assert!(matches!(access.admit(&head, "demo"), Err(Denied::BadKey)), "{fields}");
            assert!(Access::Anyone.admit(&head, "demo").is_ok(), "{fields}");
        }
    }

    #[test]
    fn anyone_may_claim_and_is_known_again() {
        assert_eq!(Access::default().admit(&request(""), "demo"), Ok(None));
        assert_eq!(Access::default().admit(&bearer("abc"), "demo"), Ok(Some(KeyHash::of(b"abc"))));
    }

    #[test]
    fn those_listed_claim_what_is_theirs() {
        let access = listed(&[entry("'demo', 'lab-*'", &["one"]), entry("'other'", &["two"])].concat());
        for (key, name, admitted) in [
            ("one", "demo", Ok(())),
            ("one", "lab-7", Ok(())),
            ("one", "lab-", Ok(())),
            ("one", "lab", Err(Denied::NotYours)),
            ("one", "demo2", Err(Denied::NotYours)),
            ("one", "dem", Err(Denied::NotYours)),
            ("one", "other", Err(Denied::NotYours)),
            ("two", "other", Ok(())),
            ("two", "demo", Err(Denied::NotYours)),
            ("three", "demo", Err(Denied::BadKey)),
            ("on", "demo", Err(Denied::BadKey)),
            ("", "demo", Err(Denied::NoKey)),
        ] {
            let hash = admitted.map(|()| Some(KeyHash::of(key.as_bytes())));
            assert_eq!(access.admit(&bearer(key), name), hash, "{key} {name}");
        }
        // The hash is not the key.
        assert_eq!(listed(&entry("'*'", &[KEY])).admit(&bearer(HASH), "demo"), Err(Denied::BadKey));
    }

    #[test]
    fn a_key_is_changed_with_both_valid_for_a_while() {
        let access = listed(&entry("'demo'", &["old", "new"]));
        for key in ["old", "new"] {
            assert!(access.admit(&bearer(key), "demo").is_ok(), "{key}");
        }
    }

    #[test]
    fn tables_of_one_key_add_up() {
        let access = listed(&[entry("'a'", &["k"]), entry("'b'", &["other"]), entry("'c'", &["old", "k"])].concat());
        for (name, may) in [("a", true), ("b", false), ("c", true)] {
            assert_eq!(access.admit(&bearer("k"), name).is_ok(), may, "{name}");
        }
    }

    #[test]
    fn names_are_in_any_case_and_a_star_is_every_one() {
        let access = listed(&entry("'Demo', 'LAB-*'", &["k"]));
        for name in ["demo", "lab-x"] {
            assert!(access.admit(&bearer("k"), name).is_ok(), "{name}");
        }
        let access = listed(&entry("'*'", &["k"]));
        for name in ["default", "demo", "_"] {
            assert!(access.admit(&bearer("k"), name).is_ok(), "{name}");
        }
    }

    #[test]
    fn files_as_people_write_them() {
        let unpadded = HASH.trim_end_matches('=');
        for (text, tables) in [
            (format!("[[agent]]\nnames = [\"demo\", \"lab-*\"]\nhash = \"{HASH}\"\n"), 1),
            (format!("# Ours.\r\n[[agent]]\r\nhash = '{unpadded}'\r\nnames = [\r\n  'a', # one\r\n]\r\n"), 1),
            (format!("[[agent]]\nnames=['a']\nhash=['{HASH}']\n[[agent]]\nnames=['b']\nhash='{HASH}'"), 2),
            (format!("agent = [{{ names = ['a'], hash = '{HASH}' }}]"), 1),
        ] {
            assert_eq!(Agents::parse(&text).map(|agents| agents.len()), Ok(tables), "{text}");
        }
    }

    #[test]
    fn a_wrong_file_is_told_where_and_what_to_do() {
        let good = format!("[[agent]]\nnames = ['a']\nhash = '{HASH}'\n");
        let names = |value: &str| format!("{good}\n[[agent]]\nnames = {value}\nhash = '{HASH}'\n");
        let hash = |value: &str| format!("{good}\n[[agent]]\nnames = ['a']\nhash = {value}\n");
        let long = "a".repeat(64);
        for (text, line, said) in [
            (String::new(), "", "add a table `[[agent]]`"),
            ("# Nothing yet.\n".into(), "", "ptth-relay hash-key"),
            ("agent = []\n".into(), "", "nobody could claim"),
            (format!("{good}[[agent]\n"), "line 4 is no TOML: ", "]"),
            (format!("{good}names = ['b']\n"), "line 4 is no TOML: ", "duplicate key"),
            (format!("{good}[agent]\n"), "line 4 is no TOML: ", "duplicate key"),
            (good.replace("'a'", "a"), "line 2 is no TOML: ", "quote"),
            (hash(KEY), "line 7 is no TOML: ", "quote"),
            (good.replace("[[agent]]", "[agent]"), "line 1: ", "two brackets"),
            (good.replace("[[agent]]", "[[agents]]"), "line 1: ", "no `agents` here"),
            (good.replace("[[agent]]", ""), "line 3: ", "no `hash` here"),
            (format!("open = true\n{good}"), "line 1: ", "no `open` here"),
            ("agent = 'a'\n".into(), "line 1: ", "two brackets"),
            ("agent = ['a']\n".into(), "line 1 (table 1): ", "a table `[[agent]]`"),
            (format!("{good}name = 'b'\n"), "line 4 (table 1): ", "no `name`; a table has"),
            (format!("{good}\n[[agent]]\nhash = '{HASH}'\n"), "line 5 (table 2): ", "no `names`; add"),
            (format!("{good}\n[[agent]]\nnames = ['b']\n"), "line 5 (table 2): ", "no `hash`; add"),
            (names("'b'"), "line 6 (table 2): ", "`names` is a list"),
            (names("[]"), "line 6 (table 2): ", "at least one name"),
            (names("[1]"), "line 6 (table 2): ", "a name is 1 to 63 letters"),
            (names("['b',\n '']"), "line 7 (table 2): ", "a name is"),
            (names("['a.b']"), "line 6 (table 2): ", "a name is"),
            (names("['a*b']"), "line 6 (table 2): ", "may end in `*`"),
            (names("['**']"), "line 6 (table 2): ", "may end in `*`"),
            (names("['*a']"), "line 6 (table 2): ", "may end in `*`"),
            (names("['ä']"), "line 6 (table 2): ", "a name is"),
            (names(&format!("['{long}']")), "line 6 (table 2): ", "1 to 63"),
            (names(&format!("['{long}*']")), "line 6 (table 2): ", "1 to 63"),
            (hash("7"), "line 7 (table 2): ", "`hash` is 44 characters"),
            (hash("''"), "line 7 (table 2): ", "`hash` is 44 characters"),
            (hash(&format!("'{KEY}'")), "line 7 (table 2): ", "ptth-relay hash-key"),
            (hash("'dG9vIHNob3J0'"), "line 7 (table 2): ", "`hash` is 44 characters"),
            (hash(&format!("'{}'", &HASH[1..])), "line 7 (table 2): ", "`hash` is 44 characters"),
            (hash(&format!("'{} '", HASH)), "line 7 (table 2): ", "`hash` is 44 characters"),
            (hash("[]"), "line 7 (table 2): ", "a list of two"),
            (hash(&format!("['{HASH}', '{HASH}', '{HASH}']")), "line 7 (table 2): ", "a table of its own"),
            (hash(&format!("['{HASH}', ['{HASH}']]")), "line 7 (table 2): ", "`hash` is 44 characters"),
        ] {
            let error = Agents::parse(&text).map(|_| ()).unwrap_err();
            assert!(error.starts_with(line) && error.contains(said) && !error.contains('\n'), "{error}\nfor\n{text}");
            assert!(!error.contains(KEY), "{error}");
        }
    }

    #[test]
    fn a_refusal_has_its_code_and_the_name() {
        for (denied, code, status) in [
            (Denied::NoKey, "no-credential", 401),
            (Denied::BadKey, "bad-credential", 401),
            (Denied::NotYours, "name-not-allowed", 403),
        ] {
            let answer = refusal(denied, "demo");
            assert_eq!((answer.code.name, answer.code.status), (code, status));
            assert!(answer.text.contains("`demo`"), "{}", answer.text);
        }
    }
}
