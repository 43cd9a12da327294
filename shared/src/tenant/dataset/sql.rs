//! Finds `:name` in SQL, and nothing else that has a colon.
//!
//! Follows Postgres' own lexer (`src/backend/parser/scan.l`, versions 15 to 18) as far as it decides what is text and
//! what is not: strings with their continuation over lines, `E''` escapes, quoted identifiers, dollar quotes, comments
//! that nest. Inside those a colon means nothing; outside, `::` is a cast, `:=` names an argument, and a colon before a
//! digit is an array slice. A value never becomes part of the SQL: `:name` turns into a numbered parameter. Strings are
//! read with `standard_conforming_strings` on, which whoever runs the SQL must see to.

use super::value::ParameterType;

/// A dataset's SQL, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// The SQL with `$1` … `$n`, each declared text and cast to its type.
    pub(super) sql: String,
    /// The name of each of `$1` … `$n`.
    pub(super) names: Vec<String>,
}

/// What is wrong with a dataset's SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SqlFault {
    /// Where, as bytes from the SQL's start.
    pub(crate) offset: usize,
    /// What is wrong and what to write instead.
    pub(crate) detail: String,
}

/// Turns each `:name` into a parameter. `type_of` knows the declared ones; all that is wrong is reported at once.
pub(super) fn prepare(sql: &str, type_of: impl Fn(&str) -> Option<ParameterType>) -> Result<Prepared, Vec<SqlFault>> {
    if let Some(offset) = sql.find('\0') {
        return Err(vec![SqlFault { offset, detail: "has a NUL character, which Postgres refuses; remove it".into() }]);
    }
    let mut faults = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut output = String::with_capacity(sql.len() + 64);
    let mut lexer = Lexer { sql, position: 0 };
    let mut first_word = true;
    let mut ended = None;
    loop {
        let start = lexer.position;
        let token = match lexer.next() {
            Ok(Some(token)) => token,
            Ok(None) => break,
            Err(fault) => {
                faults.push(fault);
                break;
            }
        };
        let text = sql.get(start..lexer.position).unwrap_or_default();
        if let Some(semicolon) = ended {
            if token != Token::Blank {
                faults.push(SqlFault { offset: semicolon, detail: "a dataset is one statement; remove what follows the `;`".into() });
                break;
            }
            continue;
        }
        if first_word && token != Token::Blank {
            first_word = false;
            let reads = ["select", "with", "values", "table", "("].iter().any(|word| text.eq_ignore_ascii_case(word));
            if !reads {
                let detail = format!("a dataset must begin with SELECT, WITH, VALUES or TABLE, not with `{text}`");
                faults.push(SqlFault { offset: start, detail });
            }
        }
        match token {
            Token::Blank | Token::Other => output.push_str(text),
            Token::Semicolon => ended = Some(start),
            Token::Parameter(name) => {
                let Some(parameter) = type_of(name) else {
                    faults.push(SqlFault {
                        offset: start,
                        detail: format!(
                            "`:{name}` is not declared under `parameters` (an array slice is written with a space, `[1 : {name}]`)"
                        ),
                    });
                    continue;
                };
                let number = names.iter().position(|known| known == name).unwrap_or_else(|| {
                    names.push(name.to_owned());
                    names.len() - 1
                }) + 1;
                // Declared as text, so that every value can be bound as text and Postgres itself reads it as its type.
                let bound = match parameter {
                    ParameterType::Text => format!("(${number}::text)"),
                    other => format!("((${number}::text)::{})", other.sql_name()),
                };
                output.push_str(&bound);
            }
        }
    }
    if first_word && faults.is_empty() {
        faults.push(SqlFault { offset: 0, detail: "is empty; write a SELECT".into() });
    }
    if faults.is_empty() { Ok(Prepared { sql: output, names }) } else { Err(faults) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// White space or a comment.
    Blank,
    /// `:name`.
    Parameter(&'a str),
    Semicolon,
    /// A word, a string, an operator's character: copied as it stands.
    Other,
}

struct Lexer<'a> {
    sql: &'a str,
    position: usize,
}

/// `ident_start`: any byte beyond ASCII may begin a name.
fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// `ident_cont`: a dollar may stand inside a name, so `a$b$c` begins no dollar quote.
fn continues_name(byte: u8) -> bool {
    begins_name(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// `space`: Postgres counts the form feed and the vertical tab too.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

impl<'a> Lexer<'a> {
    fn byte(&self, ahead: usize) -> Option<u8> {
        self.sql.as_bytes().get(self.position + ahead).copied()
    }

    fn skip_while(&mut self, belongs: impl Fn(u8) -> bool) {
        while self.byte(0).is_some_and(&belongs) {
            self.position += 1;
        }
    }

    fn fault<T>(offset: usize, detail: impl Into<String>) -> Result<T, SqlFault> {
        Err(SqlFault { offset, detail: detail.into() })
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, SqlFault> {
        let start = self.position;
        let Some(byte) = self.byte(0) else { return Ok(None) };
        let token = match (byte, self.byte(1)) {
            (byte, _) if is_space(byte) => {
                self.skip_while(is_space);
                Token::Blank
            }
            (b'-', Some(b'-')) => {
                self.skip_while(|byte| !matches!(byte, b'\n' | b'\r'));
                Token::Blank
            }
            (b'/', Some(b'*')) => self.block_comment()?,
            (b'\'', _) => self.string(false)?,
            (b'e' | b'E', Some(b'\'')) => {
                self.position += 1;
                self.string(true)?
            }
            (b'"', _) => self.quoted_name()?,
            (b'$', Some(next)) if next.is_ascii_digit() => {
                return Self::fault(start, "has a numbered parameter; name it, as `:since`, and declare it under `parameters`");
            }
            (b'$', _) => self.dollar_quote()?,
            (b':', Some(b':' | b'=')) => {
                self.position += 2;
                Token::Other
            }
            (b':', Some(b'\'' | b'"')) => {
                return Self::fault(start, "has a quoted parameter; write `:name` without quotes, the value is bound and needs none");
            }
            (b':', Some(next)) if begins_name(next) => {
                self.position += 1;
                self.skip_while(|byte| continues_name(byte) && byte != b'$');
                Token::Parameter(self.sql.get(start + 1..self.position).unwrap_or_default())
            }
            (b';', _) => {
                self.position += 1;
                Token::Semicolon
            }
            (byte, _) if begins_name(byte) => {
                self.skip_while(continues_name);
                Token::Other
            }
            _ => {
                self.position += 1;
                Token::Other
            }
        };
        Ok(Some(token))
    }

    fn block_comment(&mut self) -> Result<Token<'a>, SqlFault> {
        let start = self.position;
        let mut depth = 0_usize;
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.position += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.position += 2;
                    if depth == 0 {
                        return Ok(Token::Blank);
                    }
                }
                (Some(_), _) => self.position += 1,
                (None, _) => return Self::fault(start, "has a comment `/*` that never ends"),
            }
        }
    }

    /// A string from its opening quote on. Two strings with a line's end between them are one, so the second keeps the
    /// first one's rule for backslashes.
    fn string(&mut self, escapes: bool) -> Result<Token<'a>, SqlFault> {
        let start = self.position;
        self.position += 1;
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'\\'), Some(_)) if escapes => self.position += 2,
                (Some(b'\''), Some(b'\'')) => self.position += 2,
                (Some(b'\''), _) => {
                    self.position += 1;
                    let end = self.position;
                    if !self.continues_on_another_line() {
                        self.position = end;
                        return Ok(Token::Other);
                    }
                }
                (Some(_), _) => self.position += 1,
                (None, _) => return Self::fault(start, "has a string `'` that never ends"),
            }
        }
    }

    /// Whether a string goes on after white space with a line's end in it (`quotecontinue`); stands behind its quote then.
    fn continues_on_another_line(&mut self) -> bool {
        let start = self.position;
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(byte), _) if is_space(byte) => self.position += 1,
                (Some(b'-'), Some(b'-')) => self.skip_while(|byte| !matches!(byte, b'\n' | b'\r')),
                (Some(b'\''), _) => {
                    let between = self.sql.as_bytes().get(start..self.position).unwrap_or_default();
                    self.position += 1;
                    return between.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
                }
                _ => return false,
            }
        }
    }

    fn quoted_name(&mut self) -> Result<Token<'a>, SqlFault> {
        let start = self.position;
        self.position += 1;
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'"'), Some(b'"')) => self.position += 2,
                (Some(b'"'), _) => {
                    self.position += 1;
                    return Ok(Token::Other);
                }
                (Some(_), _) => self.position += 1,
                (None, _) => return Self::fault(start, "has a quoted name `\"` that never ends"),
            }
        }
    }

    /// `$tag$ … $tag$`, or a lone dollar, which is nobody's token and Postgres' to refuse.
    fn dollar_quote(&mut self) -> Result<Token<'a>, SqlFault> {
        let start = self.position;
        self.position += 1;
        if self.byte(0).is_some_and(begins_name) {
            self.skip_while(|byte| continues_name(byte) && byte != b'$');
        }
        if self.byte(0) != Some(b'$') {
            self.position = start + 1;
            return Ok(Token::Other);
        }
        self.position += 1;
        let tag = self.sql.get(start..self.position).unwrap_or_default();
        match self.sql.get(self.position..).and_then(|rest| rest.find(tag)) {
            Some(length) => {
                self.position += length + tag.len();
                Ok(Token::Other)
            }
            None => Self::fault(start, format!("has a string `{tag}` that never ends")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[expect(clippy::unnecessary_wraps, reason = "the shape that `prepare` asks for")]
    fn all_text(_: &str) -> Option<ParameterType> {
        Some(ParameterType::Text)
    }

    fn names(sql: &str) -> Vec<String> {
        prepare(sql, all_text).unwrap_or_else(|faults| panic!("{sql}: {faults:?}")).names
    }

    fn fault(sql: &str) -> SqlFault {
        prepare(sql, all_text).unwrap_err().remove(0)
    }

    #[test]
    fn parameters_are_numbered_once_and_cast() {
        let type_of = |name: &str| match name {
            "owner" => Some(ParameterType::Text),
            "since" => Some(ParameterType::Timestamptz),
            "tags" => Some(ParameterType::TextArray),
            _ => None,
        };
        let sql = "SELECT id FROM prompt WHERE owner_id = :owner AND created_at >= :since AND (tag = ANY(:tags) OR owner = :owner)";
        let prepared = prepare(sql, type_of).unwrap();
        assert_eq!(
            prepared.sql,
            "SELECT id FROM prompt WHERE owner_id = ($1::text) AND created_at >= (($2::text)::timestamptz) AND (tag = ANY((($3::text)::text[])) OR owner = ($1::text))"
        );
        assert_eq!(prepared.names, ["owner", "since", "tags"]);
    }

    #[test]
    fn what_only_looks_like_a_parameter_is_left_alone() {
        for sql in [
            "SELECT ':a'",
            "SELECT 'it''s :a'",
            r"SELECT '\' , ':a'",
            r"SELECT E'\':a\\'",
            r"SELECT e'\\\':a'",
            "SELECT E'x' -- ' :a\n  '\\':a'",
            "SELECT 'x'\r'\\', ':a'",
            r#"SELECT ":a" AS ":b "" :c""#,
            "SELECT $$ :a $x$ :b $$, $tag$ $$ :c $tag $tag$",
            "SELECT $é$ :a $é$",
            "SELECT a$b$ FROM t -- :a $b$",
            "SELECT 1 -- :a",
            "SELECT 1 -- :a\r, 2",
            "SELECT /* :a /* :b */ :c */ 1",
            "SELECT /* ' */ 1 /* \" */",
            "SELECT now()::date, '1'::text::int, x :: int",
            "SELECT a[1:2], a[:2], a[1:], a[:], a[1 : n]",
            "SELECT f(a := 1)",
            "SELECT U&'d\\0061t\\+000061 :a', B'1', X'1F', N':a', U&\":a\"",
            "SELECT '{\"a\": \":b\"}'::jsonb ->> 'a', '$.a ? (@.b == 1)'::jsonpath",
            "SELECT type'1', like_e'x', 1e'5'",
        ] {
            let prepared = prepare(sql, all_text).unwrap_or_else(|faults| panic!("{sql}: {faults:?}"));
            assert_eq!(prepared.names, Vec::<String>::new(), "{sql}");
            assert_eq!(prepared.sql, sql);
        }
    }

    #[test]
    fn parameters_next_to_what_confuses() {
        assert_eq!(names("SELECT :a::date, ':x'||:b||':y', -:c,:d--:e\n,:f/*:g*/"), ["a", "b", "c", "d", "f"]);
        assert_eq!(names("SELECT 'x' ':y', E'\\'' || :a"), ["a"], "no line's end between: two strings");
        assert_eq!(names("SELECT E'a'\n'\\' || :no' || :a"), ["a"]);
        assert_eq!(names("SELECT a[:lo::int]"), ["lo"]);
        assert_eq!(names("SELECT x\u{a0}:a"), ["a"], "a no-break space is part of a name to Postgres");
    }

    #[test]
    fn one_reading_statement() {
        assert_eq!(
            prepare(" /* of */ WITH x AS (SELECT 1) TABLE x ; -- done\n", all_text).unwrap().sql,
            " /* of */ WITH x AS (SELECT 1) TABLE x "
        );
        assert_eq!(fault("SELECT 1; DELETE FROM t").offset, 8);
        assert!(fault("SELECT 1;;").detail.contains("one statement"));
        assert_eq!(fault("-- x\nDELETE FROM t").offset, 5);
        assert!(fault("  -- nothing\n").detail.contains("empty"));
        assert!(fault("").detail.contains("empty"));
        assert!(fault("SELECT ';' ; ';'").detail.contains("one statement"));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(fault("SELECT 'x").offset, 7);
        assert_eq!(fault("SELECT E'x\\'").offset, 8);
        assert_eq!(fault("SELECT \"x").offset, 7);
        assert_eq!(fault("SELECT $a$ x $b$").offset, 7);
        assert_eq!(fault("SELECT /* /* */ x").offset, 7);
        assert_eq!(fault("SELECT a, $1").offset, 10);
        assert_eq!(fault("SELECT :'a'").offset, 7);
        assert_eq!(fault("SELECT '\0'").detail.matches("NUL").count() + fault("SELECT \0").detail.matches("NUL").count(), 2);
        let faults = prepare("SELECT :a, :b, :a, :Owner", |_| None).unwrap_err();
        assert_eq!(faults.iter().map(|fault| fault.offset).collect::<Vec<_>>(), [7, 11, 15, 19]);
        assert!(faults[3].detail.starts_with("`:Owner` is not declared"));
    }

    /// Any order of fragments finds exactly their parameters, and putting the names back gives the text back.
    #[test]
    fn fragments_in_any_order() {
        let fragments: [(&str, &[&str]); 16] = [
            (" 'a '' :no' ", &[]),
            (" E'\\' :no \\\\' ", &[]),
            (" \"q \"\" :no\" ", &[]),
            (" $$ ' :no \" $$ ", &[]),
            (" $t$ $$ :no -- $t$ ", &[]),
            (" -- ' :no \" /*\n", &[]),
            (" /* ' :no /* \" */ $$ -- */ ", &[]),
            (" :a ", &["a"]),
            (",:b_2,", &["b_2"]),
            (" :a::date ", &["a"]),
            (" x::text ", &[]),
            (" y[1:2] ", &[]),
            (" a$b$c ", &[]),
            (" naïve ", &[]),
            (" >= ", &[]),
            (" (:c) ", &["c"]),
        ];
        for _ in 0..2_000 {
            let mut sql = String::from("SELECT ");
            let mut expected: Vec<&str> = Vec::new();
            for byte in random::bytes::<12>() {
                let (text, parameters) = fragments[usize::from(byte) % fragments.len()];
                sql.push_str(text);
                expected.extend(parameters);
            }
            let prepared = prepare(&sql, all_text).unwrap_or_else(|faults| panic!("{sql}: {faults:?}"));
            let mut distinct: Vec<&str> = Vec::new();
            for name in &expected {
                if !distinct.contains(name) {
                    distinct.push(name);
                }
            }
            assert_eq!(prepared.names, distinct, "{sql}");
            let mut back = prepared.sql.clone();
            for (index, name) in prepared.names.iter().enumerate() {
                back = back.replace(&format!("(${}::text)", index + 1), &format!(":{name}"));
            }
            assert_eq!(back, sql);
        }
    }

    /// Whatever stands in it, reading ends, and without a panic.
    #[test]
    fn noise_is_survived() {
        let alphabet: Vec<char> = "'\"$:;-/*\\eE aé\n[1".chars().collect();
        for _ in 0..5_000 {
            let noise: String = random::bytes::<24>().iter().map(|byte| alphabet[usize::from(*byte) % alphabet.len()]).collect();
            let _ = prepare(&noise, all_text);
            let _ = prepare(&format!("SELECT {noise}"), |_| None);
        }
    }
}
