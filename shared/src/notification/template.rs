//! Texts with places to fill in, as a manifest holds them: minijinja, with bounds on work and size.
//!
//! What must stay true: a template can do nothing but make a text, in bounded steps, bounded memory ([`language`]) and of bounded size; a value that is filled in can't
//! become Markdown, so nobody who names themselves `[click](https://evil.example)` puts a link into somebody's mail.

mod language;

use std::io;

use minijinja::{Environment, ErrorKind, Value, escape_formatter};

/// Steps of one rendering: some thousand values, and an end to loops within loops.
const FUEL: u64 = 50_000;

/// The longest text that a template makes, in bytes.
pub const LONGEST_TEXT: usize = 100 * 1024;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it stands.
    Plain,
    /// Markdown: what is filled in loses its meaning there.
    Markdown,
}

/// Why a template can't be read, or makes no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

impl TemplateError {
    fn of(error: &minijinja::Error) -> Self {
        // Never the value, which is somebody's data.
        let what = match error.kind() {
            ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
            ErrorKind::WriteFailure => format!("its text is longer than {LONGEST_TEXT} bytes"),
            kind => error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
        };
        Self(error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line})")))
    }
}

/// Fills templates in.
#[derive(Debug)]
pub struct Renderer {
    plain: Environment<'static>,
    markdown: Environment<'static>,
}

impl Default for Renderer {
    fn default() -> Self {
        let mut plain = language::environment();
        plain.set_fuel(Some(FUEL));
        plain.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // What is not known is left out, not called `none`.
        plain.set_formatter(|out, state, value| escape_formatter(out, state, if value.is_none() { &Value::UNDEFINED } else { value }));
        let mut markdown = plain.clone();
        markdown.set_formatter(|out, state, value| {
            if value.is_undefined() || value.is_none() {
                return Ok(());
            }
            if value.is_safe() {
                return escape_formatter(out, state, value);
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Ok(out.write_str(&escaped(&text))?)
        });
        Self { plain, markdown }
    }
}

impl Renderer {
    /// What is wrong with a template by itself.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn check(&self, template: &str) -> Result<(), TemplateError> {
        language::check(template)?;
        self.plain.template_from_str(template).map(drop).map_err(|error| TemplateError::of(&error))
    }

    /// Fills a template in.
    ///
    /// # Errors
    /// [`TemplateError`]: it can't be read, takes too long or makes too much.
    pub fn render(&self, template: &str, form: Form, values: &Value) -> Result<String, TemplateError> {
        let environment = match form {
            Form::Plain => &self.plain,
            Form::Markdown => &self.markdown,
        };
        // What was declared by an older version was not looked at as this one does.
        language::check(template)?;
        let failed = |error: minijinja::Error| TemplateError::of(&error);
        let mut text = Bounded(Vec::new());
        environment.template_from_str(template).map_err(failed)?.render_captured_to(values.clone(), &mut text).map_err(failed)?;
        String::from_utf8(text.0).map_err(|_| TemplateError("it makes no text".to_owned()))
    }
}

/// A text that does not grow beyond its bound.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST_TEXT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value as plain text within Markdown: any ASCII punctuation may be escaped (`CommonMark` 0.31, section 2.4), and a line's end
/// is a break of the line within its paragraph (section 6.7).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_ascii_punctuation() || c == '\n' {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() && c != '\n' { ' ' } else { c });
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(template: &str, form: Form, values: &serde_json::Value) -> Result<String, TemplateError> {
        Renderer::default().render(template, form, &Value::from(minijinja::value::Serde(values)))
    }

    #[test]
    fn values_are_filled_in_and_mean_nothing_in_markdown() {
        let values = json!({"name": "[x](https://evil.example)\n# <b>", "n": 3, "items": ["a", "b"], "none": null});
        assert_eq!(
            rendered("{{ n }}: {{ name }}{{ nothing }}{{ none }}", Form::Plain, &values).unwrap(),
            "3: [x](https://evil.example)\n# <b>"
        );
        assert_eq!(
            rendered("**{{ n }}** {{ name }}{{ absent }}", Form::Markdown, &values).unwrap(),
            "**3** \\[x\\]\\(https\\:\\/\\/evil\\.example\\)\\\n\\# \\<b\\>"
        );
        assert_eq!(rendered("{% for item in items %}- {{ item }}\n{% endfor %}", Form::Markdown, &values).unwrap(), "- a\n- b\n");
    }

    #[test]
    fn there_is_an_end_to_work_and_to_size() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(rendered(endless, Form::Plain, &json!({})).unwrap_err().to_string().contains("too many steps"));
        let long = format!("{{% for a in range(200) %}}{}{{% endfor %}}", "x".repeat(1_000));
        assert!(rendered(&long, Form::Plain, &json!({})).unwrap_err().to_string().contains("longer than"));
        for (growing, why) in [
            ("{{ ('x' ~ long)|replace('x', long ~ long)|replace('y', long) }}", "more than"),
            ("{{ range(100000)|join(long) }}", "more than"),
            ("{{ 'a\nb'|indent(1500000000) }}", "unknown filter"),
            ("{{ '%0900000000d'|format(1) }}", "unknown filter"),
            ("{{ long|tojson|tojson|tojson }}", "unknown filter"),
            ("{{ long * 1000000 }}", "multiply"),
        ] {
            let said = rendered(growing, Form::Plain, &json!({"long": "y".repeat(4_000)})).unwrap_err().to_string();
            assert!(said.contains(why), "{growing}: {said}");
        }
        assert_eq!(
            rendered("{{ items|join(', ') }}: {{ 'a-b'|replace('-', '+') }}", Form::Plain, &json!({"items": ["a", 1]})).unwrap(),
            "a, 1: a+b"
        );
        let renderer = Renderer::default();
        assert!(renderer.check("{{ a").is_err() && renderer.check("{% include 'x' %}").is_err() && renderer.check("{{ a }}").is_ok());
    }
}
