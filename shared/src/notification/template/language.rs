//! What templates can say: as much of Jinja as can't make much out of little.
//!
//! Fuel bounds the steps of a template and not what one of them costs, and the bound on the text is asked when it is written. So whatever
//! multiplies is not there: `*`, variables that a template sets (a text put together with itself thirty times is a gigabyte), loops
//! over what it makes up, filters without a bound of their own.
//!
//! What must stay true: what a step makes is bounded by what is in it (values and the template itself), or by [`LONGEST_TEXT`].

use minijinja::{Environment, Error, ErrorKind, Value, filters, functions, tests as conditions};

use super::{LONGEST_TEXT, TemplateError};

/// Blocks; `raw` is none of them, so that what [`check`] reads is what the engine reads.
const BLOCKS: [&str; 6] = ["if", "elif", "else", "endif", "for", "endfor"];

/// An environment that knows what is bounded.
pub(super) fn environment() -> Environment<'static> {
    let mut known = Environment::empty();
    known.add_function("range", functions::range);
    known.add_filter("safe", filters::safe);
    known.add_filter("escape", filters::escape);
    known.add_filter("e", filters::escape);
    known.add_filter("lower", filters::lower);
    known.add_filter("upper", filters::upper);
    known.add_filter("title", filters::title);
    known.add_filter("capitalize", filters::capitalize);
    known.add_filter("trim", filters::trim);
    known.add_filter("length", filters::length);
    known.add_filter("count", filters::length);
    known.add_filter("default", filters::default);
    known.add_filter("d", filters::default);
    known.add_filter("first", filters::first);
    known.add_filter("last", filters::last);
    known.add_filter("min", filters::min);
    known.add_filter("max", filters::max);
    known.add_filter("sort", filters::sort);
    known.add_filter("unique", filters::unique);
    known.add_filter("reverse", filters::reverse);
    known.add_filter("items", filters::items);
    known.add_filter("dictsort", filters::dictsort);
    known.add_filter("map", filters::map);
    known.add_filter("select", filters::select);
    known.add_filter("reject", filters::reject);
    known.add_filter("selectattr", filters::selectattr);
    known.add_filter("rejectattr", filters::rejectattr);
    known.add_filter("round", filters::round);
    known.add_filter("abs", filters::abs);
    known.add_filter("int", filters::int);
    known.add_filter("float", filters::float);
    known.add_filter("replace", replace);
    known.add_filter("join", join);
    known.add_test("defined", conditions::is_defined);
    known.add_test("undefined", conditions::is_undefined);
    known.add_test("none", conditions::is_none);
    known.add_test("true", conditions::is_true);
    known.add_test("false", conditions::is_false);
    known.add_test("string", conditions::is_string);
    known.add_test("number", conditions::is_number);
    known.add_test("sequence", conditions::is_sequence);
    known.add_test("mapping", conditions::is_mapping);
    known.add_test("odd", conditions::is_odd);
    known.add_test("even", conditions::is_even);
    known.add_test("divisibleby", conditions::is_divisibleby);
    known.add_test("startingwith", conditions::is_startingwith);
    known.add_test("endingwith", conditions::is_endingwith);
    known.add_test("eq", conditions::is_eq);
    known.add_test("ne", conditions::is_ne);
    known.add_test("lt", conditions::is_lt);
    known.add_test("le", conditions::is_le);
    known.add_test("gt", conditions::is_gt);
    known.add_test("ge", conditions::is_ge);
    known.add_test("in", conditions::is_in);
    known
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("makes a text of more than {LONGEST_TEXT} bytes"))
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    let longest = text.matches(from).count().saturating_mul(to.len()).saturating_add(text.len());
    if longest > LONGEST_TEXT { Err(too_long()) } else { Ok(text.replace(from, to)) }
}

fn join(values: &Value, separator: Option<&str>) -> Result<String, Error> {
    let mut joined = String::new();
    for (place, value) in values.try_iter()?.enumerate() {
        if place > 0 {
            joined.push_str(separator.unwrap_or_default());
        }
        match value.as_str() {
            Some(text) => joined.push_str(text),
            None => joined.push_str(&value.to_string()),
        }
        if joined.len() > LONGEST_TEXT {
            return Err(too_long());
        }
    }
    Ok(joined)
}

/// Whether a template says only what it can.
pub(super) fn check(template: &str) -> Result<(), TemplateError> {
    let mut rest = template;
    let line = |rest: &str| {
        template.len().checked_sub(rest.len()).and_then(|at| template.get(..at)).map_or(1, |before| before.matches('\n').count() + 1)
    };
    let wrong = |what: String, at: &str| TemplateError(format!("{what} (line {})", line(at)));
    while let Some(at) = rest.find('{') {
        let Some(opened) = rest.get(at..) else { break };
        if let Some(comment) = opened.strip_prefix("{#") {
            let Some(end) = comment.find("#}") else { return Err(wrong("a comment has no end".to_owned(), opened)) };
            rest = comment.get(end + 2..).unwrap_or_default();
        } else if let Some(inside) = opened.strip_prefix("{{") {
            let Some((said, after)) = tag(inside, "}}") else { return Err(wrong("`{{` has no `}}`".to_owned(), opened)) };
            expression(said).map_err(|what| wrong(what, opened))?;
            rest = after;
        } else if let Some(inside) = opened.strip_prefix("{%") {
            let Some((said, after)) = tag(inside, "%}") else { return Err(wrong("`{%` has no `%}`".to_owned(), opened)) };
            block(said).map_err(|what| wrong(what, opened))?;
            rest = after;
        } else {
            rest = opened.get(1..).unwrap_or_default();
        }
    }
    Ok(())
}

/// What stands in a tag up to its end, and what follows that; texts in quotes are passed over.
fn tag<'a>(inside: &'a str, end: &str) -> Option<(&'a str, &'a str)> {
    let at = bare(inside).find_map(|(at, _)| inside.get(at..).filter(|rest| rest.starts_with(end)).map(|_| at))?;
    Some((inside.get(..at)?, inside.get(at + end.len()..)?))
}

/// Characters outside of texts in quotes, with their places; of such a text the mark that begins it.
fn bare(said: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quote, mut escaped) = (None, false);
    said.char_indices().filter(move |&(_, c)| {
        let Some(mark) = quote else {
            quote = Some(c).filter(|c| ['"', '\''].contains(c));
            return true;
        };
        if escaped || c == '\\' {
            escaped = !escaped;
        } else if c == mark {
            quote = None;
        }
        false
    })
}

/// An expression without its texts in quotes.
fn unquoted(said: &str) -> String {
    bare(said).map(|(_, c)| if c == '"' { '\'' } else { c }).collect()
}

fn expression(said: &str) -> Result<(), String> {
    if unquoted(said).contains('*') { Err("templates don't multiply".to_owned()) } else { Ok(()) }
}

fn block(said: &str) -> Result<(), String> {
    let said = said.trim_start_matches(['-', '+']).trim_start();
    let word: String = said.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if !BLOCKS.contains(&word.as_str()) {
        return Err(format!("templates have no `{word}`; they have `if` and `for`"));
    }
    expression(said)?;
    if word == "for" { loops_over_what_is_given(said) } else { Ok(()) }
}

/// A loop gives names to what it goes through: that must be something given, or a part of it, or a count.
fn loops_over_what_is_given(said: &str) -> Result<(), String> {
    let bare = unquoted(said);
    let over = bare.split_once(" in ").map(|(_, over)| over).unwrap_or_default();
    let (over, only) = over.split_once(" if ").unwrap_or((over, ""));
    let is_plain = |c: char| c.is_alphanumeric() || c.is_whitespace() || "_.|[]():'-+".contains(c);
    let has = |text: &str, word: &str| text.split(|c: char| !c.is_alphanumeric()).any(|one| one == word);
    // A plus stands only at the end, where it keeps the line's break.
    let over = over.trim_end().trim_end_matches(['-', '+']);
    let is_given = !over.trim().is_empty() && over.chars().all(is_plain) && !over.contains('+');
    let is_more = ["recursive", "else", "in"].iter().any(|word| has(over, word) || has(only, word) && *word != "in");
    if is_given && !is_more { Ok(()) } else { Err("a `for` goes through what is given, as `data.items` or `range(3)`".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_a_message_needs_can_be_said() {
        for template in [
            "Hello {{ user.name or 'there' }}, *you* {# * #} have {{ count - 20 }} more",
            "{% for item in items %}- {{ item.title }}{% if item.url %} ({{ item.url }}){% endif %}\n{% endfor %}",
            "{%- for key, value in data|dictsort -%}{{ key }}: {{ value|upper }}{%- else -%}nothing{%- endfor -%}",
            "{% for item in data.rows[:3] if item.n > 3 and item.name in ['a', 'b'] %}{{ loop.index }}{% endfor %}",
            "{% for i in range(3) %}{{ i }}{% endfor %}{{ '*' }}{{ \"}} {% set\" }}{{ a ~ b + c }}",
            "{{ message or title }}{% if url is startingwith('http') %}\n\n[{{ url }}]({{ url }}){% endif %}",
            "{ {a} }",
        ] {
            assert_eq!(check(template), Ok(()), "{template}");
        }
    }

    #[test]
    fn what_multiplies_can_not() {
        for template in [
            "{% set a = 'x' %}",
            "{%set a%}x{%endset%}",
            "{% with a = b %}{% endwith %}",
            "{% macro a() %}{% endmacro %}",
            "{% filter upper %}{% endfilter %}",
            "{% raw %}{{ '{% endraw %}",
            "{{ 'x' * 9 }}",
            "{% if 'x' ** 9 %}{% endif %}",
            "{% for a in [x, x] %}{% endfor %}",
            "{% for a in [x ~ x] %}{% endfor %}",
            "{% for a in [x + x] %}{% endfor %}",
            "{% for a in (y if z else w) %}{% endfor %}",
            "{% for a in b if c else d ~ d %}{% endfor %}",
            "{% for a in b recursive %}{% endfor %}",
            "{% for a in\nb ~ b %}{% endfor %}",
            "{% for a in b|map('x', c) %}{% endfor %}",
            "{{ a",
            "{% if a",
            "{# a",
        ] {
            check(template).expect_err(template);
        }
        assert_eq!(check("a\n\n{{ a * b }}").unwrap_err().to_string(), "templates don't multiply (line 3)");
    }
}
