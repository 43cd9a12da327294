//! `[stats.NAME]` of a manifest: numbers of other people's services that the product shows.
//!
//! What must stay true: a manifest names what is asked for, never where a vendor's own door is: those addresses are ours. A credential goes
//! to the vendor whose variable holds it and to nobody else, so each vendor has a prefix of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::outbound::{Guard, Reach};

/// The most statistics of a product: each is a row that readers get in one answer.
pub const MOST_STATISTICS: usize = 200;

/// The most figures that are taken from one JSON document.
const MOST_FIGURES: usize = 20;

/// The longest address and the longest pointer, in bytes.
const LONGEST_URL: usize = 2_000;

/// How often a statistic may be refreshed by the clock, in seconds: not more often than readers see it as fresh, and once a week.
const EVERY: std::ops::RangeInclusive<u32> = 300..=604_800;

/// How often unless the manifest says otherwise: these numbers move slowly.
const EVERY_HOUR: u32 = 3_600;

/// The widest jitter, in seconds: as schedules have it.
const WIDEST_JITTER: u32 = 86_400;

/// How long readings are kept unless the manifest says otherwise, in days: a year, and a month to compare with.
const KEEP_DAYS: u32 = 400;

/// By how much a figure may grow or shrink between two readings and still be believed, unless the manifest says otherwise.
const JUMP_FACTOR: f64 = 2.0;

/// Whose service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// github.com.
    Github,
    /// reddit.com.
    Reddit,
    /// discord.com.
    Discord,
    /// huggingface.co.
    HuggingFace,
    /// Whoever the manifest names, by an address that answers with JSON.
    Json,
}

impl Vendor {
    /// Every vendor.
    pub const ALL: [Self; 5] = [Self::Github, Self::Reddit, Self::Discord, Self::HuggingFace, Self::Json];

    /// Its word in rows, metrics and addresses of a vendor that is played.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Reddit => "reddit",
            Self::Discord => "discord",
            Self::HuggingFace => "hugging_face",
            Self::Json => "json",
        }
    }

    /// What the variables of its credentials begin with.
    #[must_use]
    pub const fn credential_prefix(self) -> &'static str {
        match self {
            Self::Github => "OFFSTAGE_STATS_GITHUB",
            Self::Reddit => "OFFSTAGE_STATS_REDDIT",
            Self::Discord => "OFFSTAGE_STATS_DISCORD",
            Self::HuggingFace => "OFFSTAGE_STATS_HUGGING_FACE",
            Self::Json => "OFFSTAGE_STATS_JSON",
        }
    }
}

/// What the variables of all vendors' credentials begin with.
pub const CREDENTIAL_VARIABLE: &str = "OFFSTAGE_STATS_";

/// What a statistic is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// A repository of GitHub, `owner/name`.
    GithubRepository,
    /// An organisation of GitHub.
    GithubOrganisation,
    /// A community of Reddit, without `r/`.
    RedditCommunity,
    /// A server of Discord, by the code of an invite that does not expire.
    DiscordInvite,
    /// A model of Hugging Face, `owner/name`.
    HuggingFaceModel,
    /// An organisation of Hugging Face.
    HuggingFaceOrganisation,
    /// Whatever an address tells in JSON.
    Json,
}

impl About {
    /// Who is asked about it.
    #[must_use]
    pub const fn vendor(self) -> Vendor {
        match self {
            Self::GithubRepository | Self::GithubOrganisation => Vendor::Github,
            Self::RedditCommunity => Vendor::Reddit,
            Self::DiscordInvite => Vendor::Discord,
            Self::HuggingFaceModel | Self::HuggingFaceOrganisation => Vendor::HuggingFace,
            Self::Json => Vendor::Json,
        }
    }

    /// Whether a text can be its name, and how one looks. Nothing else comes into an address.
    fn subject(self) -> (fn(&str) -> bool, &'static str) {
        match self {
            Self::GithubRepository => (
                |text| text.split_once('/').is_some_and(|(owner, name)| is_plain(owner, 39, b"-") && is_plain(name, 100, b"-_.")),
                "\"owner/name\"",
            ),
            Self::GithubOrganisation => (|text| is_plain(text, 39, b"-"), "the organisation's name as in its address"),
            Self::RedditCommunity => (|text| is_plain(text, 21, b"_"), "the community's name without r/"),
            Self::DiscordInvite => (|text| is_plain(text, 64, b"-"), "the last part of an invite's address"),
            Self::HuggingFaceModel => (
                |text| text.split_once('/').is_some_and(|(owner, name)| is_plain(owner, 96, b"-_.") && is_plain(name, 96, b"-_.")),
                "\"owner/name\"",
            ),
            Self::HuggingFaceOrganisation => (|text| is_plain(text, 96, b"-_."), "the organisation's name as in its address"),
            Self::Json => (|_| false, ""),
        }
    }
}

fn is_plain(part: &str, most: usize, extra: &[u8]) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || extra.contains(&byte);
    // All dots would be a step up in a path.
    (1..=most).contains(&part.len()) && part.bytes().all(legal) && !part.bytes().all(|byte| byte == b'.')
}

/// A statistic, as the manifest declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatisticSource {
    /// What it is about.
    pub about: About,
    /// Its name there; not for JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// For JSON: the address, https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// For JSON: where in the document the figures are (RFC 6901), by the names that they get here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, String>,
    /// The worker's variable with the credential, of the vendor's prefix. Reddit's is `client id:client secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_env: Option<String>,
    /// For Reddit: the user who answers for the client, as its rules want it in every call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reddit_user: Option<String>,
    /// How often it is refreshed by the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_seconds: Option<u32>,
    /// Over how long the refreshes of one moment are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
    /// How long readings are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_days: Option<u32>,
    /// By how much a figure may grow or shrink between two readings and still be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jump_factor: Option<f64>,
}

impl StatisticSource {
    /// How often it is refreshed by the clock, in seconds.
    #[must_use]
    pub fn every_seconds(&self) -> u32 {
        self.every_seconds.unwrap_or(EVERY_HOUR)
    }

    /// Over how many seconds the refreshes of one moment are spread: a quarter of the interval, so that those which a manifest brought
    /// together do not come together.
    #[must_use]
    pub fn jitter_seconds(&self) -> u32 {
        self.jitter_seconds.unwrap_or((self.every_seconds() / 4).min(WIDEST_JITTER))
    }

    /// How long readings are kept, in days.
    #[must_use]
    pub fn keep_days(&self) -> u32 {
        self.keep_days.unwrap_or(KEEP_DAYS)
    }

    /// By how much a figure may grow or shrink between two readings and still be believed.
    #[must_use]
    pub fn jump_factor(&self) -> f64 {
        self.jump_factor.unwrap_or(JUMP_FACTOR)
    }

    /// What is wrong with it, by its field.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let vendor = self.about.vendor();
        match (&self.subject, self.about) {
            (Some(_), About::Json) => faults.push(("subject", "is not for JSON, which has `url`; remove it".to_owned())),
            (None, About::Json) => {}
            (subject, about) => {
                let (is_right, looks) = about.subject();
                if !subject.as_deref().is_some_and(is_right) {
                    faults.push(("subject", format!("must be {looks}")));
                }
            }
        }
        match (&self.url, self.about) {
            (None, About::Json) => faults.push(("url", "is missing; name the address that answers with JSON".to_owned())),
            (Some(url), About::Json) => faults.extend(address_fault(url).map(|detail| ("url", detail))),
            (Some(_), _) => faults.push(("url", "is for `about = \"json\"` alone; the addresses of vendors are built in".to_owned())),
            (None, _) => {}
        }
        match (self.figures.is_empty(), self.about) {
            (true, About::Json) => {
                faults.push(("figures", "is missing; write for example { members = \"/data/members\" }".to_owned()));
            }
            (false, About::Json) => faults.extend(self.figure_faults().map(|detail| ("figures", detail))),
            (false, _) => faults.push(("figures", "is for `about = \"json\"` alone; those of vendors are built in".to_owned())),
            (true, _) => {}
        }
        if let Some(name) = &self.credential_env {
            let prefix = vendor.credential_prefix();
            let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            let rest = name.strip_prefix(prefix);
            if !rest.is_some_and(|rest| (rest.is_empty() || rest.starts_with('_')) && rest.len() <= 100 && rest.bytes().all(legal)) {
                // Not repeated: it may be the secret itself.
                let detail = format!(
                    "must name the variable that holds the credential: {prefix}, or that with `_` and capital letters, digits or `_` behind it"
                );
                faults.push(("credential_env", detail));
            }
        }
        if self.about == About::RedditCommunity {
            if self.credential_env.is_none() {
                let detail = format!("is missing: Reddit is asked by registered clients alone; write \"{}\"", vendor.credential_prefix());
                faults.push(("credential_env", detail));
            }
            if !self.reddit_user.as_deref().is_some_and(|user| is_plain(user, 20, b"_-")) {
                faults
                    .push(("reddit_user", "must be the name, without /u/, of who answers for the client (Reddit's API rules)".to_owned()));
            }
        } else if self.reddit_user.is_some() {
            faults.push(("reddit_user", "is for Reddit alone; remove it".to_owned()));
        }
        let every = self.every_seconds();
        if !EVERY.contains(&every) {
            faults.push(("every_seconds", format!("is {every}; {} to {} are allowed", EVERY.start(), EVERY.end())));
        } else if self.jitter_seconds() >= every {
            faults.push(("jitter_seconds", format!("is {}; it must be less than every_seconds", self.jitter_seconds())));
        } else if self.jitter_seconds() > WIDEST_JITTER {
            faults.push(("jitter_seconds", format!("is {}; {WIDEST_JITTER} are the most", self.jitter_seconds())));
        }
        if !(1..=3_650).contains(&self.keep_days()) {
            faults.push(("keep_days", format!("is {}; 1 to 3650 are allowed", self.keep_days())));
        }
        // Not a number is in no range.
        if !(1.1..=1_000.0).contains(&self.jump_factor()) {
            faults.push(("jump_factor", format!("is {}; 1.1 to 1000 are allowed", self.jump_factor())));
        }
        faults
    }

    fn figure_faults(&self) -> Option<String> {
        if self.figures.len() > MOST_FIGURES {
            return Some(format!("has {} figures; {MOST_FIGURES} are the most", self.figures.len()));
        }
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_name = |name: &str| (1..=63).contains(&name.len()) && name.bytes().all(legal);
        // RFC 6901, section 3: empty, or parts that begin with a slash; `~` stands before 0 or 1 alone.
        let is_pointer = |pointer: &str| {
            let escapes_are_right = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            pointer.len() <= LONGEST_URL && (pointer.is_empty() || pointer.starts_with('/')) && escapes_are_right
        };
        let wrong = self.figures.iter().find(|(name, pointer)| !is_name(name) || !is_pointer(pointer));
        wrong.map(|(name, pointer)| {
            format!(
                "`{name} = \"{pointer}\"` must be a name of lower-case letters, digits and `_`, and a JSON pointer such as /data/members"
            )
        })
    }
}

fn address_fault(url: &str) -> Option<String> {
    if url.len() > LONGEST_URL {
        return Some(format!("has {} bytes; {LONGEST_URL} are the most", url.len()));
    }
    let Ok(parsed) = Url::parse(url) else { return Some("is not a URL".to_owned()) };
    if parsed.fragment().is_some() {
        return Some("must not have a fragment (#…): servers never see it".to_owned());
    }
    // The operator's list of the worker is not known where a manifest is applied, so what leads inside is judged when it is called.
    let loopback = Guard::allowing(crate::outbound::Network::LOOPBACK);
    loopback.url(&parsed, Reach::Public).err().map(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> StatisticSource {
        toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn faults(text: &str) -> Vec<&'static str> {
        source(text).faults().into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn what_can_be_asked_for_is_taken() {
        for right in [
            "about = 'github_repository'\nsubject = 'acme/tools.rs'\ncredential_env = 'OFFSTAGE_STATS_GITHUB'",
            "about = 'github_organisation'\nsubject = 'acme-inc'",
            "about = 'reddit_community'\nsubject = 'rust'\ncredential_env = 'OFFSTAGE_STATS_REDDIT_MAIN'\nreddit_user = 'ada'",
            "about = 'discord_invite'\nsubject = 'rust-lang'\nevery_seconds = 300",
            "about = 'hugging_face_model'\nsubject = 'acme/small-7b'\njump_factor = 3.5",
            "about = 'hugging_face_organisation'\nsubject = 'acme'",
            "about = 'json'\nurl = 'https://api.example.com/v1?x=y'\nfigures = { members = '/data/0/a~1b', all = '' }",
        ] {
            assert_eq!(faults(right), Vec::<&str>::new(), "{right}");
        }
    }

    #[test]
    fn nothing_else_comes_into_an_address() {
        for wrong in ["acme", "acme/../x", "acme/..", "a/b/c", "acme/to ols", "acme/t?x", "-/%2e", "/x", "acme/", ""] {
            assert_eq!(faults(&format!("about = 'github_repository'\nsubject = '{wrong}'")), ["subject"], "{wrong}");
        }
        assert_eq!(faults("about = 'discord_invite'\nsubject = 'a/b'"), ["subject"]);
        assert_eq!(faults("about = 'discord_invite'"), ["subject"]);
        for wrong in ["http://api.example.com/", "https://10.0.0.1/", "https://u:p@example.com/", "x", "https://a.example/#b"] {
            assert_eq!(faults(&format!("about = 'json'\nurl = '{wrong}'\nfigures = {{ a = '/a' }}")), ["url"], "{wrong}");
        }
        for wrong in ["a", "/~2", "/~"] {
            assert_eq!(
                faults(&format!("about = 'json'\nurl = 'https://a.example/'\nfigures = {{ a = '{wrong}' }}")),
                ["figures"],
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_credential_goes_to_its_own_vendor() {
        let with = |about: &str, name: &str| faults(&format!("about = '{about}'\nsubject = 'a-b'\ncredential_env = '{name}'"));
        for name in ["OFFSTAGE_STATS_GITHUB_A", "OFFSTAGE_STATS_DISCORDX", "OFFSTAGE_DATABASE_URL", "ghp_0123", "OFFSTAGE_STATS_DISCORD_a"]
        {
            assert_eq!(with("discord_invite", name), ["credential_env"], "{name}");
        }
        assert_eq!(with("discord_invite", "OFFSTAGE_STATS_DISCORD_A"), Vec::<&str>::new());
        let secret = source("about = 'discord_invite'\nsubject = 'a'\ncredential_env = 'Bot abc.def'").faults();
        assert!(!secret[0].1.contains("abc.def"), "{secret:?}");
    }

    #[test]
    fn numbers_are_bounded() {
        let with = |more: &str| faults(&format!("about = 'discord_invite'\nsubject = 'a'\n{more}"));
        assert_eq!(with("every_seconds = 604800"), Vec::<&str>::new());
        assert_eq!(with("every_seconds = 299"), ["every_seconds"]);
        assert_eq!(with("every_seconds = 600\njitter_seconds = 600"), ["jitter_seconds"]);
        assert_eq!(with("keep_days = 0"), ["keep_days"]);
        assert_eq!(with("jump_factor = 1.0"), ["jump_factor"]);
        assert_eq!(with("jump_factor = nan"), ["jump_factor"]);
        assert_eq!(with("reddit_user = 'ada'"), ["reddit_user"]);
        assert_eq!(faults("about = 'reddit_community'\nsubject = 'rust'"), ["credential_env", "reddit_user"]);
    }
}
