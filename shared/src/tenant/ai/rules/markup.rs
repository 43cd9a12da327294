//! What in a text would run in a page, however it is written; and no prose that only speaks of such things.

use super::plain::plain;

/// Attributes by which a page runs what they hold (HTML Standard, 8.1.8.2: event handler content attributes, the commonest of them). Others are
/// found within a tag.
const HANDLERS: [&str; 30] = [
    "abort",
    "animationend",
    "animationstart",
    "auxclick",
    "beforeunload",
    "blur",
    "change",
    "click",
    "contextmenu",
    "dblclick",
    "drag",
    "drop",
    "error",
    "focus",
    "focusin",
    "hashchange",
    "input",
    "keydown",
    "keypress",
    "keyup",
    "load",
    "mousedown",
    "mouseenter",
    "mouseover",
    "pointerdown",
    "scroll",
    "submit",
    "toggle",
    "unload",
    "wheel",
];

/// Schemes of addresses that run what they hold.
const SCHEMES: [&str; 3] = ["javascript:", "vbscript:", "livescript:"];

/// The beginning of an address that is a page itself (RFC 2397), where parameters or data follow.
const PAGE: &str = "data:text/html";

/// The most white space that something may be broken up by, at each place: browsers pass over some of it.
const LONGEST_GAP: usize = 40;

/// What in a text would run in a page.
pub(super) fn found(text: &str) -> Option<&'static str> {
    let plain = plain(text);
    if has_script_tag(&plain) {
        Some("a script tag")
    } else if has_script_address(&plain) {
        Some("an address that runs a script")
    } else {
        has_handler(&plain).then_some("an event handler")
    }
}

/// What follows `word` where a text begins with it, white space within it passed over; and whether there was any.
fn behind<'a>(text: &'a str, word: &str) -> Option<(&'a str, bool)> {
    let (mut rest, mut is_broken) = (text, false);
    for wanted in word.chars() {
        let gap: usize = rest.chars().take(LONGEST_GAP).take_while(|c| c.is_whitespace()).map(char::len_utf8).sum();
        is_broken |= gap > 0;
        rest = rest.get(gap..)?.strip_prefix(wanted)?;
    }
    Some((rest, is_broken))
}

/// Whether there is a tag whose name is `script` and no longer (HTML Standard, 13.2.5.8). One that is broken up must look like a tag further
/// on too: `a < script` may be a comparison.
fn has_script_tag(text: &str) -> bool {
    text.match_indices('<').any(|(at, _)| {
        let tag = text.get(at..).unwrap_or_default();
        let Some((rest, is_broken)) = behind(tag, "<script").or_else(|| behind(tag, "</script")) else { return false };
        match rest.chars().next() {
            None | Some('>' | '/') => true,
            Some(c) => c.is_whitespace() && (!is_broken || goes_on_as_a_tag(rest)),
        }
    })
}

/// Whether a tag's end follows, or an attribute with a value.
fn goes_on_as_a_tag(text: &str) -> bool {
    let rest = text.trim_start();
    // No attribute's name is as long as this.
    let name = rest.bytes().take(32).take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'-').count();
    let rest = rest.get(name..).unwrap_or_default().trim_start();
    rest.starts_with('>') || rest.starts_with("/>") || name > 0 && rest.starts_with('=') && !rest.starts_with("==")
}

/// Whether there is an address that runs what it holds: its scheme at the start of a link or an attribute's value, or with code behind it.
/// "JavaScript: closures" is a heading.
fn has_script_address(text: &str) -> bool {
    let mut before = "";
    for (at, c) in text.char_indices() {
        // A scheme's name (RFC 3986, 3.1) does not begin within another.
        let is_start = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == '-');
        if is_start && matches!(c, 'j' | 'v' | 'l' | 'd') {
            let rest = text.get(at..).unwrap_or_default();
            if let Some((held, _)) = SCHEMES.iter().find_map(|scheme| behind(rest, scheme))
                && (is_code(held) || begins_a_link(before))
            {
                return true;
            }
            if let Some((held, _)) = behind(rest, PAGE)
                && (held.trim_start().starts_with([',', ';']) || begins_a_link(before))
            {
                return true;
            }
        }
        before = text.get(..at + c.len_utf8()).unwrap_or_default();
    }
    false
}

/// Whether what comes next is where a link begins: in Markdown, in CSS, as the value of an attribute, between angle brackets.
fn begins_a_link(before: &str) -> bool {
    let gap: usize = before.chars().rev().take(LONGEST_GAP).take_while(|c| c.is_whitespace()).map(char::len_utf8).sum();
    let before = before.get(..before.len() - gap).unwrap_or_default();
    let quoted = before.strip_suffix(['"', '\'', '`']).map_or(before, |before| before.trim_end_matches(' '));
    ["](", "](<", "]:", "url(", "<"].iter().any(|start| before.ends_with(start))
        || quoted.ends_with("url(")
        || quoted.ends_with('=') && !quoted.ends_with("==")
}

/// Whether what a scheme holds reads as code: at once, or after a space as prose would not.
fn is_code(held: &str) -> bool {
    let code = held.trim_start();
    if code.len() == held.len() && code.starts_with(|c: char| c.is_alphanumeric() || "_$([{\"'`!~+-/%\\;".contains(c)) {
        return true;
    }
    if ["//", "/*", "void ", "void("].iter().any(|start| code.starts_with(start)) {
        return true;
    }
    // No name of a function is as long as this.
    let is_of_a_name = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.');
    let name: usize = code.chars().take(100).take_while(is_of_a_name).map(char::len_utf8).sum();
    let rest = code.get(name..).unwrap_or_default();
    let assigned = rest.trim_start_matches(' ').strip_prefix('=').unwrap_or_default();
    name > 0 && (rest.starts_with(['(', '[', '`']) || !assigned.is_empty() && !assigned.starts_with(['=', '>']))
}

/// Whether something like `onclick=` is in a text: one of the known names anywhere, any name within a tag.
fn has_handler(text: &str) -> bool {
    let mut in_tag = false;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => in_tag = true,
            '>' => in_tag = false,
            'o' if !before.is_alphanumeric() && before != '_' && before != '.' => {
                let rest = text.get(at..).unwrap_or_default().strip_prefix("on").unwrap_or_default();
                // No handler's name is as long as this.
                let length = rest.bytes().take(32).take_while(u8::is_ascii_lowercase).count();
                let (name, after) = rest.split_at(length);
                // A stroke through it makes it "is not".
                let assigned = after.trim_start().strip_prefix('=').filter(|value| !value.starts_with(['=', '\u{338}']));
                if assigned.is_some() && !name.is_empty() && (in_tag || HANDLERS.contains(&name)) {
                    return true;
                }
            }
            _ => {}
        }
        before = c;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each in its plain form; the first character is one that a disguise may begin with.
    const WRONG: [&str; 24] = [
        "<script>alert(1)</script>",
        "<script src=x>",
        "<script/x>",
        "</script >",
        "<script\u{a0}>",
        "text <script",
        "a < script src=x>",
        "< / script >",
        "<script>\u{338}",
        "[a](javascript:alert(1))",
        "[a]( javascript: closures )",
        "[a]: javascript: closures",
        "<a href=\"javascript: closures\">",
        "<a href = javascript:x>",
        "<javascript: closures>",
        "a { background: url('javascript: x') }",
        "java\nscript:alert(1)",
        "javascript: alert(1)",
        "javascript: void 0",
        "javascript:/**/x",
        "vbscript:msgbox",
        "data:text/html;base64,phn",
        "data:text/html,<b>",
        "<img src=x onerror=alert(1)>",
    ];

    #[test]
    fn what_would_run_in_a_page_is_found() {
        for wrong in WRONG.into_iter().chain([
            "a < SCRIPT src=x>",
            "<scr\u{0}ipt>",
            "&lt;script&gt;",
            "JaVaScRiPt&colon;alert(1)",
            "&#106;avascript:x",
            "&#x6A;avascript:x",
            "<svg/onload = 'x'>",
            "<a onwhatever=1>",
            "x\" onmouseover=\"alert(1)",
            "%3Cscript%3E",
            "\\u003cscript\\u003e",
            "<scr\u{200b}ipt>",
            "<scr\u{ad}ipt>",
            "＜script＞",
            "&amp;lt;script&amp;gt;",
        ]) {
            assert!(found(wrong).is_some(), "{wrong}");
        }
    }

    /// Each of them, each character of it or all, by each way of writing a character otherwise; and by two ways, one after the other.
    #[test]
    fn it_is_found_however_it_is_written() {
        let percent = |c: char| c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        let ways: [(&str, &dyn Fn(char) -> String); 10] = [
            ("percent", &percent),
            ("\\u", &|c| format!("\\u{:04x}", u32::from(c))),
            ("\\u{}", &|c| format!("\\u{{{:X}}}", u32::from(c))),
            ("%u", &|c| format!("%u{:04X}", u32::from(c))),
            ("decimal", &|c| format!("&#{};", u32::from(c))),
            ("hexadecimal", &|c| format!("&#X{:X};", u32::from(c))),
            ("full width", &|c| match u32::from(c) {
                code @ 0x21..=0x7e => char::from_u32(code + 0xfee0).unwrap().to_string(),
                _ => c.to_string(),
            }),
            ("capitals", &|c| c.to_uppercase().to_string()),
            ("zero width behind it", &|c| format!("{c}\u{200b}\u{2060}\u{fe0f}")),
            ("soft hyphen before it", &|c| format!("\u{ad}{c}")),
        ];
        let written = |text: &str, way: &dyn Fn(char) -> String, only: Option<usize>| -> String {
            text.chars().enumerate().map(|(at, c)| if only.is_none_or(|only| only == at) { way(c) } else { c.to_string() }).collect()
        };
        for wrong in WRONG {
            for (name, way) in ways {
                let all = written(wrong, way, None);
                assert!(found(&all).is_some(), "{wrong}, all by {name}: {all}");
                for at in 0..wrong.chars().count() {
                    let one = written(wrong, way, Some(at));
                    assert!(found(&one).is_some(), "{wrong}, the {at}th by {name}: {one}");
                }
                for (other, second) in ways {
                    let twice = written(&all, second, None);
                    assert!(found(&twice).is_some(), "{wrong}, by {name}, then by {other}: {twice}");
                }
            }
        }
    }

    #[test]
    fn prose_passes() {
        for fine in [
            "Write a script about a tag team, 1 < 2 and 3 > 2",
            "The effect depends on = and !=; online = true; on input: a, b",
            "if onclick == handler or button.onclick = f",
            "the press said that onload \u{2260} ready",
            "Explain Java scripts & pages, AT&T, &#; &#xZ;",
            "<b>bold</b>",
            "JavaScript: explain closures and hoisting (in depth), with an example",
            "javascript: closures",
            "Topics\u{2014}JavaScript: promises; Python: decorators",
            "**JavaScript:** what is `this`?",
            "JavaScript:\n- closures\n- promises",
            "I read \"JavaScript: The Good Parts\" (JavaScript: the language), and liked JavaScript:",
            "TypeScript: generics; typescript:foo()",
            "What is a data:text/html address? A scripted data: text",
            "if x<scripture then y",
            "while i < script.length and x <scripts[0] > 3",
            "is a < script or b > script?",
            "<scripted> <manuscript> <description> </subscript>",
            "50% of C:\\users, 100%25, \\u and \\x are escapes; 20%3 = 2",
            "emoji \u{1f468}\u{200d}\u{1f469} and \u{ff34}\u{ff49}\u{ff54}\u{ff4c}\u{ff45}",
        ] {
            assert_eq!(found(fine), None, "{fine}");
        }
    }

    /// What takes long is as good as an attack: a fifth of a megabyte of beginnings is looked at in one go.
    #[test]
    fn each_character_is_looked_at_a_bounded_number_of_times() {
        for piece in ["<", "< ", "j", "j ", "javascript:", "javascript: ", "&", "%", "\\u", "<a on", "\u{fdfa}", "%25", "&amp;"] {
            let _ = found(&piece.repeat(200_000 / piece.len()));
        }
    }
}
