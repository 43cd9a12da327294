//! Records in the form of `apt-cache dumpavail`, for machines without apt. The same ones every time.

use std::fmt::Write;
use std::io::{BufRead, Read};

/// As many as a Debian release has, roughly.
const RECORDS: u32 = 60_000;

const SECTIONS: [&str; 8] = ["admin", "devel", "games", "libs", "net", "python", "text", "x11"];
const WORDS: [&str; 16] = [
    "library",
    "tools",
    "for",
    "C++",
    "\"quoted\"",
    "naïve",
    "日本語",
    "עברית",
    "=1+1",
    "@home",
    "a,b;c",
    "it's",
    "tab\there",
    "back\\slash",
    "🎲",
    "|pipe|",
];
const PEOPLE: [&str; 4] = [
    "Debian Games Team <pkg-games@example.org>",
    "Jörg Müller-Łukasz <jorg@example.org>",
    "\"O'Brien, Zoë\" <zoe@example.org>",
    "山田 太郎 <taro@example.org>",
];

/// Reads the generated text, made stanza by stanza.
pub(super) struct Reader {
    next: u32,
    stanza: Vec<u8>,
    read: usize,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { next: 0, stanza: Vec::new(), read: 0 }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let size = self.fill_buf()?.read(buffer)?;
        self.consume(size);
        Ok(size)
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.read >= self.stanza.len() && self.next < RECORDS {
            self.stanza = stanza(self.next).into_bytes();
            self.read = 0;
            self.next += 1;
        }
        Ok(self.stanza.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

/// The n-th record.
fn stanza(number: u32) -> String {
    let mut dice = Dice(u64::from(number) + 1);
    let section = dice.one_of(&SECTIONS);
    let mut text = format!(
        "Package: {section}-{number:05}\nVersion: {}:{}.{}~rc{}-{}\nInstalled-Size: {}\nMaintainer: {}\nArchitecture: {}\n",
        dice.below(3),
        dice.below(20),
        dice.below(100),
        dice.below(4),
        dice.below(9),
        dice.below(3_000_000),
        dice.one_of(&PEOPLE),
        if dice.below(3) == 0 { "all" } else { "amd64" },
    );
    // Writing to a String can't fail.
    let depends: Vec<String> =
        (0..dice.below(40)).map(|_| format!("{}-{:05} (>= {})", dice.one_of(&SECTIONS), dice.below(60_000), dice.below(9))).collect();
    if !depends.is_empty() {
        let _ = writeln!(text, "Depends: {}", depends.join(", "));
    }
    let words: Vec<&str> = (0..=dice.below(12)).map(|_| dice.one_of(&WORDS)).collect();
    let _ = writeln!(text, "Description: {}", words.join(" "));
    if dice.below(4) == 0 {
        let _ = write!(text, " A second paragraph,\n .\n  indented {}.\n", dice.one_of(&WORDS));
    }
    if dice.below(20) == 0 {
        let _ = writeln!(text, "Tag: {}", vec!["role::program"; dice.below(600)].join(",\n "));
    }
    if dice.below(10) > 0 {
        let _ = writeln!(text, "Homepage: https://example.org/{number}?a=1&b=%20#{section}");
    }
    let size = dice.below(2_000_000_000);
    let _ = write!(text, "Section: {section}\nPriority: optional\nSize: {size}\nSHA256: {:064x}\n\n", dice.next());
    text
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or_default()
    }

    fn one_of(&mut self, choices: &[&'static str]) -> &'static str {
        let index = self.below(choices.len());
        choices.get(index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_ends_and_is_the_same_every_time() {
        let mut one = String::new();
        Reader::new().read_to_string(&mut one).unwrap();
        assert_eq!(one.matches("Package: ").count(), 60_000);
        assert!(one.starts_with(&stanza(0)) && one.ends_with(&stanza(RECORDS - 1)));
    }
}
