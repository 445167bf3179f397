-- SPDX-License-Identifier: Apache-2.0
--
-- qrmi_slurm: licenses and early refusals for jobs with --qpu, called from Slurm's Lua plugins.
--
--   job_submit      slurmctld: adds the license of each QPU to the job, and refuses unknown QPUs and those that the
--                   job's owner may not use
--   job_modify      slurmctld: keeps these licenses right while the job is changed
--   cli_pre_submit  sbatch, salloc and srun: refuses the same jobs in the same words, before slurmctld is asked
--
-- job_submit.lua and cli_filter.lua beside this file call it; a site's own scripts need one call per function.
--
-- The catalogue is all that this module knows about the QPUs; `qrmi-slurm catalogue` writes it from the config. Prolog
-- checks every job again, against the config itself. So the rules and sentences here exist a second time in Python, in
-- slurm/selection.py, config/access.py, hooks/choice.py and text.py of qrmi_slurm/, and change together with them.
--
-- slurmctld does nothing else while this runs. So what users write is limited in size, QPUs are looked up in the
-- catalogue's index, and a call that would have to search for longer than MAX_WORK refuses the job.
--
-- Runs on Lua 5.1 to 5.4. Slurm files named in comments are those of Slurm's source tree.
--
-- Contents, each section built on those above it:
--
--   limits                      sizes and counts, with their sources
--   text                        characters, safe printing, lists
--   refusals                    sentences for the user, or the admin, that end a call
--   work                        what a call may cost
--   calls                       what Slurm gets of a call: taken, refused, or failed
--   suggestions                 "did you mean"
--   catalogue                   find, read and check it
--   patterns                    `ibm_*`, `q[1-4]`, as Python's fnmatch reads them
--   selection                   the value of --qpu and its terms
--   search                      the QPUs that fit a term
--   person                      who asks
--   access rules                who may use a QPU
--   choices                     terms that leave the QPU open: their candidates, and which one the job gets
--   licenses                    the job's license list
--   slots                       the job's share of a QPU that is shared by slots
--   markers                     what a choice leaves in the job's AdminComment
--   submission                  job_submit
--   changes                     job_modify
--   login node                  cli_pre_submit

local M = {}

local unpack = table.unpack or unpack -- luacheck: ignore

-- The catalogue's path, for a site that does not keep it beside slurm.conf.
M.catalogue = nil

-- --- limits ------------------------------------------------------------------------------------------------

-- How many names a message lists; a site may have thousands.
local MAX_NAMES = 20

-- The longest piece of user text in a message, in characters.
local MAX_CHARS = 200

-- What a selection may have, as in qrmi_slurm/slurm/selection.py. cli_filter/selection.c refuses more too, but not for
-- jobs that bypass our plugin.
local MAX_SELECTION_BYTES = 4096
local MAX_TERMS = 64
local MAX_CHOICES = 8

-- Variables in a job's SPANK environment. Slurm copies each into a table before we can look for ours.
local MAX_SPANK_VARIABLES = 4096

-- Candidates of all of a job's choices together. Each choice gets at least MAX_CHOICES of them, so no job is refused
-- that could have its QPUs. The sensor can move a waiting job to any of them.
local MAX_CANDIDATES = 64

-- What a call may spend on searching, and what each part of a search costs, in nanoseconds of a slow processor. At a
-- site with hundreds of QPUs, patterns that leave almost everything open and fit almost nothing cost more.
local MAX_WORK = 600000
local WORK_OF_A_BYTE = 0.5 -- that a string function looks at
local WORK_OF_A_SHELF = 600
local WORK_OF_A_RULE = 1500
local WORK_OF_A_HIT = 600
local WORK_OF_A_CHECK = 700
local WORK_OF_A_STEP = 2
local WORK_OF_A_NAME = 2000
local WORK_OF_A_NAME_BYTE = 300
local WORK_OF_A_ROUND = 150
local WORK_OF_A_PATTERN_BYTE = 800

-- With more stars, Lua would take too long for a name that almost fits.
local MAX_LUA_STARS = 2

-- How far apart jobs begin in a list of names: a prime number, so that they begin everywhere.
local PRIME = 7919

-- "Did you mean": the lowest similarity and the longest word to compare, as in qrmi_slurm/text.py.
local MIN_SIMILARITY = 0.75
local MAX_COMPARED_CHARS = 100

-- Comparing with more names takes long, even on a login node.
local MAX_COMPARED_NAMES = 1000

-- src/slurmctld/job_mgr.c, _test_job_desc_fields(): Slurm refuses longer lists of licenses and partitions, and longer
-- accounts and QOS, with "Pathname ... too long", but only after job_submit.
local MAX_FIELD_BYTES = 1024

-- slurm/slurm.h, enum job_states: the low byte of job_state is the state, the rest are flags.
local JOB_STATE_BASE = 256
local JOB_PENDING = 0

-- slurm/slurm.h, MAX_HET_JOB_COMPONENTS.
local MAX_COMPONENTS = 128

-- --- text --------------------------------------------------------------------------------------------------

-- Split UTF-8 text into characters.
local function characters(text)
    local found = {}
    for char in text:gmatch(".[\128-\191]*") do
        found[#found + 1] = char
    end
    return found
end

-- Each control character, and how it is shown.
local CONTROLS = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
for byte = 1, 159 do
    if byte < 32 or byte == 127 then
        local char = string.char(byte)
        CONTROLS[char] = CONTROLS[char] or string.format("\\x%02x", byte)
    elseif byte >= 128 then
        CONTROLS[string.char(194, byte)] = string.format("\\x%02x", byte)
    end
end
CONTROLS["\226\128\168"] = "\\u2028"
CONTROLS["\226\128\169"] = "\\u2029"

-- The first MAX_CHARS characters of a text, or fewer and three dots.
local function shortened(text)
    if not text:find("[\128-\255]") then
        return text:sub(1, MAX_CHARS - 3) .. "..."
    end
    local count, kept = 0, 0
    for index in text:gmatch("()[^\128-\191]") do
        count = count + 1
        if count == MAX_CHARS - 2 then
            kept = index - 1
        elseif count > MAX_CHARS then
            return text:sub(1, kept) .. "..."
        end
    end
    return text
end

-- Make user text safe for one line of a message: control characters escaped, cut to MAX_CHARS.
local function printable(text)
    if #text <= MAX_CHARS and not text:find("[^ -~]") then
        return text
    end
    local clean = text:sub(1, 4 * (MAX_CHARS + 1)) -- a character has at most four bytes
    for _, pattern in ipairs({ "[\1-\31\127]", "\194[\128-\159]", "\226\128[\168\169]" }) do
        clean = clean:gsub(pattern, CONTROLS)
    end
    return #clean > MAX_CHARS and shortened(clean) or clean
end

-- Some texts, printable, with commas between them: the first MAX_NAMES, and how many more there are.
local function listing(texts)
    local found = {}
    for index = 1, math.min(#texts, MAX_NAMES) do
        found[index] = printable(texts[index])
    end
    local more = #texts > MAX_NAMES and string.format(", ... and %d more", #texts - MAX_NAMES) or ""
    return table.concat(found, ", ") .. more
end

local function is_blank(byte)
    return byte == 32 or byte == 9
end

-- A text without blanks around it. Lua's patterns would take quadratic time for that.
local function trimmed(text)
    local first, last = 1, #text
    while is_blank(text:byte(first)) do
        first = first + 1
    end
    while last >= first and is_blank(text:byte(last)) do
        last = last - 1
    end
    return text:sub(first, last)
end

-- The first argument that is a string and not empty.
local function given(...)
    for index = 1, select("#", ...) do
        local value = select(index, ...)
        if type(value) == "string" and value ~= "" then
            return value
        end
    end
    return nil
end

-- --- refusals ----------------------------------------------------------------------------------------------

local PREFIX = "qrmi-slurm: "

-- Refuse the job with a sentence for its user.
local function refuse(sentence, code)
    error({ refusal = sentence, code = code }, 0)
end

-- Stop because the catalogue is missing or broken; the reason goes to the admin.
local function give_up(reason)
    error({ fault = reason }, 0)
end

local function refusal_in(problem)
    return type(problem) == "table" and problem.refusal
end

-- --- work --------------------------------------------------------------------------------------------------

-- What the current call may still spend, and the term that it looks up, for the message.
local work_left, looked_up = 0, ""

local function begin_work()
    work_left, looked_up = MAX_WORK, "--qpu"
end

-- Pay for a part of a search; refuse the job when nothing is left.
local function spend(work)
    work_left = work_left - work
    if work_left < 0 then
        local sentence = "--qpu: %s takes too long to look up; name QPUs, or write out more of their names"
        refuse(string.format(sentence, printable(looked_up)))
    end
end

-- --- calls -------------------------------------------------------------------------------------------------

-- Tell the admin why a job could not be judged.
local function log_fault(problem)
    local fault = type(problem) == "table" and problem.fault
    local reason = fault and fault .. "; run: qrmi-slurm catalogue" or "internal error: " .. tostring(problem)
    slurm.log_error("%s", PREFIX .. reason)
end

-- Run a function and return the code for Slurm. No error escapes: up to 25.05 Slurm would let the job through, without
-- its licenses (src/plugins/job_submit/lua/job_submit_lua.c).
--
-- run: it calls its argument once it knows that the job has --qpu. Until then an internal error lets the job pass,
--   afterwards it refuses the job.
-- has_codes: whether a refusal may return one of Slurm's own codes, for which scontrol prints Slurm's own words.
local function guarded(run, has_codes)
    local has_qpu = false
    begin_work()
    local is_done, problem = pcall(run, function()
        has_qpu = true
    end)
    if is_done then
        return slurm.SUCCESS
    end
    local refusal = refusal_in(problem)
    if refusal then
        slurm.log_user("%s", PREFIX .. refusal)
        return has_codes and problem.code or slurm.ERROR
    end
    log_fault(problem)
    if not has_qpu then
        return slurm.SUCCESS
    end
    slurm.log_user("%s", PREFIX .. "the site's list of QPUs cannot be used; please tell an admin")
    return slurm.ERROR
end

-- --- suggestions -------------------------------------------------------------------------------------------

-- The longest piece that two words have in common: its length, and where it begins in each.
local function longest_common(a, a_from, a_to, b, b_from, b_to)
    local best, best_a, best_b = 0, a_from, b_from
    local previous = {}
    for i = a_from, a_to do
        local row = {}
        for j = b_from, b_to do
            if a:byte(i) == b:byte(j) then
                local length = (previous[j - 1] or 0) + 1
                row[j] = length
                if length > best then
                    best, best_a, best_b = length, i - length + 1, j - length + 1
                end
            end
        end
        previous = row
    end
    return best, best_a, best_b
end

-- How many letters two words share in the same order, counted as Python's difflib does: the longest common piece, then
-- the same to the left and to the right of it.
local function shared_letters(a, a_from, a_to, b, b_from, b_to)
    local length, a_start, b_start = longest_common(a, a_from, a_to, b, b_from, b_to)
    if length == 0 then
        return 0
    end
    return length
        + shared_letters(a, a_from, a_start - 1, b, b_from, b_start - 1)
        + shared_letters(a, a_start + length, a_to, b, b_start + length, b_to)
end

-- The name that is most like `word`, or nil. Ties are broken as in Python: by the folded name, then by the name.
local function near_match(word, names)
    if #word > MAX_COMPARED_CHARS or #names > MAX_COMPARED_NAMES then
        return nil
    end
    local folded = word:lower():gsub("_", "-")
    local best, best_ratio, best_folded = nil, MIN_SIMILARITY, ""
    for _, name in ipairs(names) do
        local other = name:lower():gsub("_", "-")
        local both = #folded + #other
        if both > 0 and 2 * math.min(#folded, #other) / both >= best_ratio then
            local ratio = 2 * shared_letters(other, 1, #other, folded, 1, #folded) / both
            local wins_tie = ratio == best_ratio and (other > best_folded or (other == best_folded and name > best))
            if ratio > best_ratio or wins_tie then
                best, best_ratio, best_folded = name, ratio, other
            end
        end
    end
    return best
end

-- The sentence for terms that no QPU of the site fits: tables with their places and texts.
-- suggests: whether to look for a name that is like the first one.
local function unknown_qpus(unknown, catalogue, suggests)
    table.sort(unknown, function(one, other)
        return one.place < other.place
    end)
    local texts = {}
    for index, item in ipairs(unknown) do
        texts[index] = item.text
    end
    local words = { printable(texts[1]) }
    local near = suggests and near_match(texts[1], catalogue.names)
    if near then
        words[1] = words[1] .. " (did you mean " .. printable(near) .. "?)"
    end
    if #texts > 1 then
        words[2] = listing({ unpack(texts, 2) })
    end
    return (#texts == 1 and "unknown QPU: " or "unknown QPUs: ") .. table.concat(words, ", ") .. catalogue.known
end

-- --- catalogue ---------------------------------------------------------------------------------------------

local CATALOGUE_FILE = "qrmi_catalogue.lua"
local CATALOGUE_VERSION = 2

-- The access rules, with the words for a job that one of them keeps out.
local RULES = {
    users = { one = "user" }, -- the rule for groups is part of it
    partitions = { one = "partition" },
    accounts = { one = "account", none = "a job without an account" },
    qos = { one = "QOS", none = "a job without a QOS" },
}

-- The folder of the script that Slurm has loaded, which is slurm.conf's: src/common/read_config.c,
-- get_extra_conf_path(). This works only while that script requires this module: later it may make tail calls, which
-- leave no trace of it on the stack.
local function folder_of_script()
    for level = 3, 20 do
        local info = debug.getinfo(level, "S")
        if not info then
            break
        end
        local folder = info.source:match("^@(.*/)job_submit%.lua$") or info.source:match("^@(.*/)cli_filter%.lua$")
        if folder then
            return folder
        end
    end
    return (os.getenv("SLURM_CONF") or "/etc/slurm/slurm.conf"):match("^(.*/)") or "/etc/slurm/"
end

local home = folder_of_script()

-- Compile text that can reach no function. Lua 5.1 cannot load() text, later versions have no setfenv().
local function compile(text, name)
    if not setfenv then -- luacheck: ignore
        return load(text, name, "t", {})
    end
    local chunk, problem = loadstring(text, name) -- luacheck: ignore
    return chunk and setfenv(chunk, {}), problem -- luacheck: ignore
end

-- Evaluate text as data: its value, or nil and what is wrong with it.
local function value_of(text, name)
    if text:byte(1) == 27 then
        return nil, "is compiled Lua"
    end
    local chunk, problem = compile(text, name)
    if not chunk then
        return nil, "is not Lua: " .. tostring(problem)
    end
    local is_run, value = pcall(chunk)
    if not is_run then
        return nil, "cannot be evaluated: " .. tostring(value)
    end
    return value
end

local function is_string(value)
    return type(value) == "string"
end

local function is_rule(rule)
    if type(rule) ~= "table" then
        return false
    end
    for name, part in pairs(rule) do
        -- An unknown rule comes from a later version; skipping it would let everybody in.
        if not RULES[name] or not is_string(part.names) or not is_string(part.whom) then
            return false
        end
    end
    return true
end

local function is_shelf(shelf, rules)
    return type(shelf) == "table"
        and is_string(shelf.names)
        and type(shelf.type) == "number"
        and type(shelf.capacity) == "number"
        and (shelf.rule == nil or is_rule(rules[shelf.rule]))
        and (shelf.licenses == nil or is_string(shelf.licenses))
        and (shelf.notice == nil or is_string(shelf.notice))
        and (shelf.slots == nil or is_string(shelf.slots))
end

-- Put a shelf's QPUs into the index, in which each QPU is a number.
local function add_shelf(found, shelf)
    local number = #found.names
    shelf.first = number + 1
    for name in shelf.names:gmatch("\n([^\t\n]+)") do
        number = number + 1
        found.names[number], found.by_name[name], found.shelf_of[number] = name, number, shelf
    end
    shelf.last = number
    number = shelf.first - 1
    for license in (shelf.licenses or ""):gmatch("[^\n]+") do
        number = number + 1
        found.licenses[number] = license
        found.by_license[license] = found.by_license[license] or number
    end
    found.has_dynamic = found.has_dynamic or shelf.dynamic
    if shelf.slots then
        found.of_slots[shelf.slots] = true
    end
    -- QPUs without a license come first, since a choice that includes one needs none; those out of service last.
    local place = not shelf.licenses and 1 or shelf.notice and 3 or 2
    table.insert(found.shelves[place], shelf)
    return shelf.first <= shelf.last and (number == shelf.last or not shelf.licenses)
end

-- The catalogue that a text holds, or nil and what is wrong with it.
local function parse_catalogue(text, path)
    local value, fault = value_of(text, "=" .. CATALOGUE_FILE)
    if fault then
        return nil, path .. " " .. fault
    end
    local version = type(value) == "table" and tonumber(value.version)
    if version and version < CATALOGUE_VERSION then
        return nil, path .. " was written by an older version of qrmi-slurm"
    elseif version and version > CATALOGUE_VERSION then
        return nil, path .. " was written by a newer version of qrmi-slurm, and needs its Lua files"
    end
    for _, name in ipairs({ "types", "groups", "rules", "shared", "shelves" }) do
        if not version or type(value[name]) ~= "table" then
            return nil, path .. " is not a catalogue of qrmi-slurm"
        end
    end
    local found = { names = {}, by_name = {}, shelf_of = {}, licenses = {}, by_license = {}, of_slots = {} }
    found.shelves = { {}, {}, {} }
    found.types, found.groups, found.rules, found.shared = value.types, value.groups, value.rules, value.shared
    found.known = is_string(value.known) and value.known or ""
    for index, shelf in ipairs(value.shelves) do
        if not is_shelf(shelf, value.rules) or not add_shelf(found, shelf) then
            return nil, string.format("%s: shelf no. %d is malformed", path, index)
        end
    end
    if #found.names ~= value.count then
        return nil, path .. " is truncated"
    end
    return found
end

-- The last catalogue that was read, or what was wrong with it, with its path, first line and size.
local cache = {}

-- The current catalogue, or nil and why it cannot be used. A file with the same first line is not read again: the line
-- has a checksum of the rest.
local function read_catalogue()
    local path = M.catalogue or (home .. CATALOGUE_FILE)
    local file, problem = io.open(path, "r")
    if not file then
        return nil, "cannot read the catalogue: " .. tostring(problem)
    end
    local head, size = file:read("*l"), file:seek("end")
    if cache.path ~= path or cache.head ~= head or cache.size ~= size then
        file:seek("set")
        local text = file:read("*a")
        if type(text) ~= "string" then
            file:close()
            return nil, path .. " cannot be read"
        end
        local catalogue, fault = parse_catalogue(text, path)
        cache = { path = path, head = head, size = size, catalogue = catalogue, fault = fault }
    end
    file:close()
    return cache.catalogue, cache.fault
end

local function usable_catalogue()
    local catalogue, fault = read_catalogue()
    if not catalogue then
        give_up(fault)
    end
    return catalogue
end

-- --- patterns ----------------------------------------------------------------------------------------------

-- A character as a number that grows with its code point.
local function code_of(char)
    local code = 0
    for index = 1, #char do
        code = code * 256 + char:byte(index)
    end
    return code
end

-- Where the `]` is that closes a character class, or nil. One at the very beginning is a member of the class.
local function end_of_class(pattern, first)
    local stop = first
    if pattern[stop] == "]" then
        stop = stop + 1
    end
    while pattern[stop] and pattern[stop] ~= "]" do
        stop = stop + 1
    end
    return pattern[stop] and stop
end

-- The members of a character class, as ranges of codes.
local function ranges_of(pattern, first, stop)
    local ranges = {}
    local index = first
    while index < stop do
        local is_range = pattern[index + 1] == "-" and index + 2 < stop
        local last = is_range and index + 2 or index
        ranges[#ranges + 1] = { code_of(pattern[index]), code_of(pattern[last]) }
        index = last + 1
    end
    return ranges
end

local function is_in_range(code, ranges)
    for _, range in ipairs(ranges) do
        if range[1] <= code and code <= range[2] then
            return true
        end
    end
    return false
end

-- The character class that opens at `open`, as ranges, and the index after it; nil if the class is not closed. Without
-- the index of the last `]`, a pattern of many `[` would take quadratic time.
local function class_at(pattern, open, last_bracket)
    local is_negated = pattern[open + 1] == "!"
    local first = open + (is_negated and 2 or 1)
    local stop = first <= last_bracket and end_of_class(pattern, first)
    if not stop then
        return nil
    end
    local ranges = ranges_of(pattern, first, stop)
    ranges.is_negated = is_negated
    return ranges, stop + 1
end

-- Split a pattern into steps, as Python's fnmatch reads it: "*", "?", the code of a character, or a class as ranges.
-- Return them, and for each the character, or false if it leaves that open.
local function steps_of(pattern)
    local chars = characters(pattern)
    local last_bracket = 0
    for index, char in ipairs(chars) do
        last_bracket = char == "]" and index or last_bracket
    end
    local steps, texts = {}, {}
    local index = 1
    while index <= #chars do
        local char = chars[index]
        local step, following = char, index + 1
        local text = char ~= "*" and char ~= "?" and char
        if char == "[" then
            local class, after = class_at(chars, index, last_bracket)
            if class then
                step, text, following = class, false, after
            end
        end
        steps[#steps + 1] = text and code_of(char) or step
        texts[#texts + 1] = text
        index = following
    end
    return steps, texts
end

-- What every fitting name contains, as it stands in a shelf's names: how it begins, how it ends, and the longest other
-- run of plain characters.
local function needles_of(texts)
    local found, inner = {}, ""
    local from = 1
    for index = 1, #texts + 1 do
        if not texts[index] then
            local run = table.concat(texts, "", from, index - 1)
            if run ~= "" and from == 1 then
                found[#found + 1] = "\n" .. run
            elseif run ~= "" and index > #texts then
                found[#found + 1] = run .. "\t"
            elseif #run > #inner then
                inner = run
            end
            from = index + 1
        end
    end
    found[#found + 1] = inner ~= "" and inner or nil
    return found
end

-- A character with a code below 128, as Lua's patterns have it.
local function quoted(code)
    return (string.char(code):gsub("%p", "%%%0"))
end

local function is_alphanumeric(code)
    return code < 128 and string.char(code):find("%w") ~= nil
end

-- A class of characters as Lua's patterns have it, or nil if they have none.
local function lua_class_of(ranges)
    local found = { ranges.is_negated and "[^" or "[" }
    for index, range in ipairs(ranges) do
        local first, last = range[1], range[2]
        if first == last and first < 128 then
            found[index + 1] = quoted(first)
        elseif is_alphanumeric(first) and is_alphanumeric(last) then
            found[index + 1] = string.char(first) .. "-" .. string.char(last)
        else
            return nil
        end
    end
    return table.concat(found) .. "]"
end

-- A pattern's steps as a Lua pattern for ASCII names, which is faster; nil if there is none.
local function lua_pattern_of(steps)
    local found = { "^" }
    for index, step in ipairs(steps) do
        local part
        if step == "*" then
            part = ".-"
        elseif step == "?" then
            part = "."
        elseif type(step) == "table" then
            part = lua_class_of(step)
        elseif step < 128 then
            part = quoted(step)
        end
        if not part then
            return nil
        end
        found[index + 1] = part
    end
    return table.concat(found) .. "$"
end

-- The codes of a name's characters.
local function codes_of(name)
    spend(WORK_OF_A_NAME + #name * WORK_OF_A_NAME_BYTE)
    if not name:find("[\128-\255]") then
        return { name:byte(1, -1) }
    end
    local codes = characters(name)
    for index, char in ipairs(codes) do
        codes[index] = code_of(char)
    end
    return codes
end

-- Whether a name fits a pattern's steps. On a mismatch, the last star takes one character more.
local function fits_steps(name, steps)
    local codes = codes_of(name)
    local at, step = 1, 1
    local star, resumed
    local rounds = 0
    while codes[at] do
        local code, wanted = codes[at], steps[step]
        rounds = rounds + 1
        if type(wanted) == "table" then
            spend(#wanted * WORK_OF_A_ROUND)
            wanted = is_in_range(code, wanted) ~= wanted.is_negated and code
        end
        if wanted == code or wanted == "?" then
            at, step = at + 1, step + 1
        elseif wanted == "*" then
            star, resumed = step, at
            step = step + 1
            if step > #steps then
                at = #codes + 1
            end
        elseif star then
            spend(rounds * WORK_OF_A_ROUND)
            rounds = 0
            resumed = resumed + 1
            at, step = resumed, star + 1
        else
            break
        end
    end
    spend(rounds * WORK_OF_A_ROUND)
    while steps[step] == "*" do
        step = step + 1
    end
    return codes[at] == nil and steps[step] == nil
end

-- Whether a name fits a pattern, as pattern_of() returns it.
local function fits(name, pattern)
    if not pattern.steps then
        return true
    end
    local size = #name
    spend(WORK_OF_A_CHECK)
    if size < pattern.min_bytes or size > pattern.max_bytes then
        return false
    elseif not pattern.lua or name:find("[\128-\255]") then
        return fits_steps(name, pattern.steps)
    end
    spend(WORK_OF_A_STEP * (pattern.stars > 1 and size * size or size))
    return name:find(pattern.lua) ~= nil
end

-- --- selection ---------------------------------------------------------------------------------------------

local PREFIXES = { "any:", "least-busy:" }

-- The value of --qpu as Prolog will see it, or nil if the job has none.
--
-- slurmd puts SPANK_ in front of names that do not begin with it (src/common/slurm_protocol_defs.c,
-- valid_spank_job_env()). If a name occurs twice, Prolog sees the last value, or an earlier one if the last is too long
-- (src/common/env.c, env_array_merge()). Our plugin sets it once, so two different values are a forgery.
--
-- job: a new job or a job's record, as Slurm passes it.
local function selection_of(job)
    if (job.spank_job_env_size or 0) > MAX_SPANK_VARIABLES then
        refuse(string.format("the job's SPANK environment has more than %d variables", MAX_SPANK_VARIABLES))
    end
    local environment = job.spank_job_env
    if type(environment) ~= "table" then
        return nil
    end
    local found
    for _, entry in pairs(environment) do
        local first = entry:match("^QRMI_QPU=()") or entry:match("^SPANK_QRMI_QPU=()")
        local value = first and entry:sub(first, first + MAX_SELECTION_BYTES) -- one byte more is too many
        if value and found and found ~= value then
            refuse("the job's SPANK environment has two different values of --qpu")
        end
        found = value or found
    end
    return found ~= "" and found or nil
end

-- One term of a selection: its text, the pattern in it, and whether it leaves open which QPU the job gets.
local function term_of(text)
    local term = { text = text, pattern = text }
    for _, prefix in ipairs(PREFIXES) do
        if text:sub(1, #prefix) == prefix and text ~= prefix then
            term.prefix, term.pattern = prefix, trimmed(text:sub(#prefix + 1))
        end
    end
    term.is_choice = term.prefix ~= nil or term.pattern:find("[*?%[]") ~= nil
    return term
end

local function refuse_limit(count, what)
    refuse(string.format("--qpu has more than %d %s; ask for fewer QPUs in one job", count, what))
end

-- The terms of a selection. A name counts once, a choice each time.
local function terms_of(selection)
    if #selection > MAX_SELECTION_BYTES then
        refuse_limit(MAX_SELECTION_BYTES, "bytes")
    elseif ("," .. selection .. ","):find(",[ \t]*,") then
        refuse("--qpu=" .. printable(selection) .. ": a name is empty; write --qpu=NAME or --qpu=NAME,NAME")
    end
    local terms, known, choices = {}, {}, 0
    for part in selection:gmatch("[^,]+") do
        local term = known[part]
        if not term then
            local word = trimmed(part)
            term = known[word] or term_of(word)
            if not known[word] or term.is_choice then
                terms[#terms + 1] = term
            end
            known[part], known[word] = term, term
        elseif term.is_choice then
            terms[#terms + 1] = term
        end
        choices = choices + (term.is_choice and 1 or 0)
        if #terms > MAX_TERMS then
            refuse_limit(MAX_TERMS, "terms")
        elseif choices > MAX_CHOICES then
            refuse_limit(MAX_CHOICES, "choices (patterns, any: and least-busy:)")
        end
    end
    return terms
end

-- --- search ------------------------------------------------------------------------------------------------
--
-- A search is a table with the numbers of QPUs that fit a term: at most `max`. If more fit, it has those from some
-- place on, which moves on from job to job.

-- Where the next job begins among the QPUs that fit a term, so that jobs take turns.
local turn = os.time()

-- is_taken: the numbers of QPUs that are not to be found, because the job asks for them by name.
local function new_search(max, is_taken)
    return { max = max, numbers = {}, is_found = {}, is_taken = is_taken, has_fitting = false, is_cut = false }
end

local function add_found(search, number)
    search.has_fitting = true
    if search.is_taken[number] or search.is_found[number] then
        return
    elseif #search.numbers >= search.max then
        search.is_cut = true
        return
    end
    search.numbers[#search.numbers + 1] = number
    search.is_found[number] = true
end

-- The numbers that a search found: in the catalogue's order, wherever it began, unless it found too many.
local function in_order(search)
    if not search.is_cut then
        table.sort(search.numbers)
    end
    return search.numbers
end

-- Add a shelf's QPUs, or those that pass a test.
local function add_each(search, shelf, is_fitting)
    local size = shelf.last - shelf.first + 1
    for index = 0, size - 1 do
        local number = shelf.first + (turn + index) % size
        if search.is_cut then
            return
        elseif not is_fitting or is_fitting(number) then
            add_found(search, number)
        end
    end
end

-- Find each needle in a shelf's names and return the farthest place; nil if one is not there. No name before it fits.
local function last_needle(names, needles, from)
    local found = from
    for _, needle in ipairs(needles) do
        local at = names:find(needle, from, true)
        spend(WORK_OF_A_HIT + WORK_OF_A_BYTE * ((at or #names) - from))
        if not at then
            return nil
        end
        found = math.max(found, at)
    end
    return found
end

-- Add the QPUs that fit a pattern, of those whose names are in a text, from some place on.
local function add_listed(search, names, pattern, from, catalogue)
    while not search.is_cut do
        local at = last_needle(names, pattern.needles, from)
        if not at then
            return
        end
        -- The needle may be in the number behind a name; then this is the next name, and the one before does not fit.
        local digits, following = names:match("\t(%d+)()", at)
        local number = tonumber(digits)
        if not number then
            return
        elseif fits(catalogue.names[number], pattern) then
            add_found(search, number)
        end
        from = following
    end
end

-- Add the QPUs of a shelf that fit a pattern, from some name on and then those before it.
local function add_matching(search, shelf, pattern, catalogue)
    if #pattern.needles > 0 then
        local start = shelf.names:find("\n", turn * PRIME % #shelf.names + 1, true)
        add_listed(search, shelf.names, pattern, start, catalogue)
        add_listed(search, shelf.names:sub(1, start), pattern, 1, catalogue)
    else
        add_each(search, shelf, function(number)
            return fits(catalogue.names[number], pattern)
        end)
    end
end

-- A type's name in lower case and without punctuation, so that all its spellings are equal.
local function canonical(type_name)
    return (type_name:lower():gsub("[^%w\128-\255]", ""))
end

-- What to look for in a shelf's names, and the steps that a name with it has to fit, unless that follows.
local function pattern_of(term)
    local front, text, back = term.pattern:match("^(%*?)([^*?%[]+)(%*?)$")
    if back == "*" and front == "" then
        return { needles = { "\n" .. text } }
    elseif front == "*" and back == "" then
        return { needles = { text .. "\t" } }
    elseif text and text:find("%D") then -- else it may be in the number behind a name
        return { needles = { text } }
    end
    spend(#term.pattern * WORK_OF_A_PATTERN_BYTE)
    local steps, texts = steps_of(term.pattern)
    local stars = 0
    for _, step in ipairs(steps) do
        stars = stars + (step == "*" and 1 or 0)
    end
    local characters_needed = #steps - stars
    return {
        steps = steps,
        stars = stars,
        needles = needles_of(texts),
        lua = stars <= MAX_LUA_STARS and lua_pattern_of(steps),
        min_bytes = characters_needed,
        max_bytes = stars == 0 and 4 * characters_needed or math.huge,
    }
end

-- How to find a choice's QPUs: the types and the one name that it may be, and its pattern, each nil if it is none.
local function plan_of(term, catalogue)
    local plan = { types = {} }
    for _, number in ipairs(term.prefix and catalogue.types[canonical(term.pattern)] or {}) do
        plan.types[number] = true
    end
    if not term.pattern:find("[*?%[]") then
        plan.number = catalogue.by_name[term.pattern]
    elseif term.pattern:find("^%*+$") then
        plan.is_all = true
    else
        plan.pattern = pattern_of(term)
    end
    return plan
end

local function search_shelf(search, shelf, plan, catalogue)
    if plan.is_all or plan.types[shelf.type] then
        add_each(search, shelf)
    elseif plan.pattern then
        add_matching(search, shelf, plan.pattern, catalogue)
    elseif plan.number and catalogue.shelf_of[plan.number] == shelf then
        add_found(search, plan.number)
    end
end

-- --- person ------------------------------------------------------------------------------------------------
--
-- A table: `ask` returns what is known about who asks, and is called only if there is a rule; `faults` has the verdicts
-- so far. What it returns is a table: user, gid, partitions (a list), account, qos. Of these, nil means unknown here,
-- false that the job has none.

local function new_person(ask)
    return { ask = ask, faults = {} }
end

-- The partitions that a job may start in: those it names, else the default one. Empty with a reservation, whose
-- partition it may be (src/slurmctld/job_mgr.c, _get_job_parts()); slurm.reservations is not read for it, because it
-- may point to reservations that are gone.
local function partitions_of(text, has_reservation, part_list)
    local found = {}
    for name in (text or ""):sub(1, MAX_FIELD_BYTES):gmatch("[^,]+") do
        found[#found + 1] = name
    end
    if not text and not has_reservation then
        for name, part in pairs(part_list or {}) do
            if part.flag_default == 1 or part.flag_default == true then
                found[1] = name
            end
        end
    end
    return found
end

-- The account or QOS that a job will have, in lower case like Slurm's own records; asking for "" means the default.
local function effective(asked, had, default)
    local name = given(asked ~= "" and (asked or had), default)
    return name and name:sub(1, MAX_FIELD_BYTES):lower()
end

-- The person behind a new job or a change. job_rec: the job as it is; nil for a new one.
local function person_of(job_desc, job_rec, part_list)
    return new_person(function()
        local had = job_rec or {}
        local account = effective(job_desc.account, had.account, job_desc.default_account)
        local qos = effective(job_desc.qos, had.qos, job_desc.default_qos)
        if not account and not qos then
            qos = false -- there is no accounting; with it, Slurm may still find a default that we cannot see
        end
        return {
            user = given(job_desc.user_name, had.user_name) or string.format("%d", had.user_id or job_desc.user_id),
            gid = had.group_id or job_desc.group_id,
            partitions = partitions_of(
                given(job_desc.partition, had.partition),
                given(job_desc.reservation) ~= nil,
                part_list
            ),
            account = account or false,
            qos = qos,
        }
    end)
end

-- What the command line says about the person; only slurmctld knows the rest.
local function person_of_options(options)
    return new_person(function()
        return {
            partitions = partitions_of(given(options.partition)),
            account = effective(options.account),
            qos = effective(options.qos),
        }
    end)
end

-- --- access rules ------------------------------------------------------------------------------------------

-- Whether a list of the catalogue has a name. The text begins with a line break and ends each name with one.
local function is_listed(name, list)
    spend(WORK_OF_A_BYTE * #list)
    return not name:find("\n", 1, true) and list:find("\n" .. name .. "\n", 1, true) ~= nil
end

-- Whether a person is in one of the groups; nil if unknown because a directory does not list a group's members.
local function is_member(names, groups, who)
    local answer = false
    for _, name in ipairs(names) do
        local group = groups[name]
        if group.gid and group.gid == who.gid then
            return true
        elseif not group.members then
            answer = nil
        elseif is_listed(who.user, group.members) then
            return true
        end
    end
    return answer
end

-- Whether the rule for users and groups lets a person in, or cannot tell.
local function lets_user_in(rule, groups, who)
    return is_listed(who.user, rule.names) or is_member(rule.groups or {}, groups, who) ~= false
end

-- Why a job with this partition, account or QOS is kept out by a rule: of whom that is true, and whom it lets in.
local function value_fault(rule, name, value)
    if value == nil or not rule or (value and is_listed(value, rule.names)) then
        return nil
    end
    return { subject = value and RULES[name].one .. " " .. printable(value) or RULES[name].none, whom = rule.whom }
end

local function fault_of(rules, groups, who)
    if rules.users and who.user and not lets_user_in(rules.users, groups, who) then
        return { subject = "user " .. printable(who.user), whom = rules.users.whom }
    end
    local fault
    for _, partition in ipairs(rules.partitions and who.partitions or {}) do
        fault = fault or value_fault(rules.partitions, "partitions", partition)
    end
    return fault or value_fault(rules.accounts, "accounts", who.account) or value_fault(rules.qos, "qos", who.qos)
end

-- Why a person is kept out by the rules with a number: false if they are not, or if only Prolog can tell.
local function verdict(number, catalogue, person)
    if not number or number == 0 then
        return false
    end
    if person.faults[number] == nil then
        spend(WORK_OF_A_RULE)
        person.who = person.who or person.ask()
        person.faults[number] = fault_of(catalogue.rules[number], catalogue.groups, person.who) or false
    end
    return person.faults[number]
end

-- The sentence for a QPU that somebody may not use.
local function denial(fault, name)
    local ending = fault.whom ~= "" and "it is for " .. fault.whom or "nobody may"
    return fault.subject .. " may not use " .. printable(name) .. ": " .. ending
end

-- --- choices -----------------------------------------------------------------------------------------------
--
-- A slot is a table for one term that leaves the QPU open: its term, its candidates (the numbers of QPUs that this job
-- may get), the reasons why there are none, and the chosen one.

local function none_left(term)
    return printable(term.text) .. ": no other QPU is left for it"
end

-- Sort the terms of a selection into the QPUs that it names, as numbers, and a slot for each choice. Return also the
-- names that the site does not have, as tables with their places and texts.
local function sort_terms(terms, catalogue)
    local named, slots, unknown = {}, {}, {}
    for place, term in ipairs(terms) do
        local number = catalogue.by_name[term.text]
        if number then
            named[#named + 1] = number
        elseif term.is_choice then
            slots[#slots + 1] = { term = term, place = place }
        else
            unknown[#unknown + 1] = { place = place, text = term.text }
        end
    end
    return named, slots, unknown
end

-- Search the shelves that are open to a person, until there is no room for more. Return the others so far.
local function search_open_shelves(search, plan, catalogue, person)
    local closed = {}
    for _, shelves in ipairs(catalogue.shelves) do
        for index = 0, #shelves - 1 do
            local shelf = shelves[(turn + index) % #shelves + 1]
            spend(WORK_OF_A_SHELF)
            if verdict(shelf.rule, catalogue, person) then
                closed[#closed + 1] = shelf
            else
                search_shelf(search, shelf, plan, catalogue)
            end
            if search.is_cut then
                return closed
            end
        end
    end
    return closed
end

-- The candidates of a choice: what fits, is not taken by name, and is open to the person. If there are none, the
-- reasons; if nothing fits at all, nil.
local function candidates_of(term, max, is_taken, catalogue, person)
    looked_up = term.text
    local plan = plan_of(term, catalogue)
    local search, reasons = new_search(max, is_taken), {}
    local closed = search_open_shelves(search, plan, catalogue, person)
    if #search.numbers > 0 then
        return { numbers = in_order(search), is_cut = search.is_cut, reasons = reasons }
    end
    local kept_out = new_search(max, {})
    for _, shelf in ipairs(closed) do
        search_shelf(kept_out, shelf, plan, catalogue)
    end
    for index, number in ipairs(in_order(kept_out)) do
        local fault = verdict(catalogue.shelf_of[number].rule, catalogue, person)
        reasons[index] = denial(fault, catalogue.names[number])
    end
    if #reasons == 0 then
        reasons[1] = none_left(term)
    end
    return (search.has_fitting or kept_out.has_fitting) and { numbers = {}, reasons = reasons } or nil
end

-- Set the candidates of slots for a person; refuse what they cannot have.
--
-- unknown: names that the site does not have, as tables with their places and texts.
-- suggests: whether to tell the user which name is like an unknown one.
local function check_access(named, slots, unknown, catalogue, person, suggests)
    local reasons, is_taken = {}, {}
    for _, number in ipairs(named) do
        local shelf = catalogue.shelf_of[number]
        local fault = verdict(shelf.rule, catalogue, person)
        if fault then
            reasons[#reasons + 1] = denial(fault, catalogue.names[number])
        end
        is_taken[number] = not shelf.dynamic
    end
    local found = {} -- a choice that is listed several times is looked up once
    for _, slot in ipairs(slots) do
        local term, max = slot.term, math.floor(MAX_CANDIDATES / #slots)
        if found[term] == nil then
            found[term] = candidates_of(term, max, is_taken, catalogue, person) or false
        end
        if found[term] then
            slot.candidates, slot.is_cut, slot.reasons = found[term].numbers, found[term].is_cut, found[term].reasons
        else
            unknown[#unknown + 1] = { place = slot.place, text = term.text }
        end
    end
    if #unknown > 0 then
        refuse(unknown_qpus(unknown, catalogue, suggests))
    elseif #named + #slots > #catalogue.names and not catalogue.has_dynamic then
        refuse(none_left(slots[#slots].term))
    end
    for _, slot in ipairs(slots) do
        for _, reason in ipairs(slot.reasons) do
            reasons[#reasons + 1] = reason
        end
    end
    if #reasons > 0 then
        local told = table.concat(reasons, "; ", 1, math.min(#reasons, MAX_NAMES))
        refuse(told .. (#reasons > MAX_NAMES and "; ..." or ""), slurm.ESLURM_ACCESS_DENIED)
    end
end

-- The QPUs that a selection names and the slots of its choices, for a person; refuse what they cannot have.
local function resolve(selection, catalogue, person, suggests)
    local named, slots, unknown = sort_terms(terms_of(selection), catalogue)
    check_access(named, slots, unknown, catalogue, person, suggests)
    return named, slots
end

-- Order a slot's candidates: QPUs in service first, starting one further than the job before, which the search has done
-- already if it found more than there was room for.
local function take_turns(slot, catalogue)
    local ordered, out_of_service = {}, {}
    local count = #slot.candidates
    local first = slot.is_cut and 0 or turn
    for index = 0, count - 1 do
        local number = slot.candidates[(first + index) % count + 1]
        local list = catalogue.shelf_of[number].notice and out_of_service or ordered
        list[#list + 1] = number
    end
    for _, number in ipairs(out_of_service) do
        ordered[#ordered + 1] = number
    end
    slot.candidates = ordered
end

-- Give a slot one of its candidates, if need be one whose holder can take another; return whether that worked. A
-- dynamic entry stands for several QPUs and can serve any number of slots.
local function place(slot, holders, tried, shelf_of)
    for _, candidate in ipairs(slot.candidates) do
        if not tried[candidate] then
            tried[candidate] = true
            local holder, shelf = holders[candidate], shelf_of[candidate]
            if not holder or (shelf and shelf.dynamic) or place(holder, holders, tried, shelf_of) then
                holders[candidate] = slot
                slot.chosen = candidate
                return true
            end
        end
    end
    return false
end

-- Give each slot one of its candidates, each candidate to one slot. Return the first slot that gets none, or nil.
-- shelf_of: the shelf of each candidate that is a QPU.
local function assign(slots, shelf_of)
    local holders = {}
    for _, slot in ipairs(slots) do
        if not place(slot, holders, {}, shelf_of) then
            return slot
        end
    end
    return nil
end

local function assign_or_refuse(slots, catalogue)
    local left_out = assign(slots, catalogue.shelf_of)
    if left_out then
        refuse(none_left(left_out.term))
    end
end

-- --- licenses ----------------------------------------------------------------------------------------------

-- How many of each license a job needs; `names` keeps the order in which they were added.
local function new_counts()
    return { names = {}, count = {} }
end

local function add(counts, license)
    if not counts.count[license] then
        counts.names[#counts.names + 1] = license
    end
    counts.count[license] = (counts.count[license] or 0) + 1
end

local function count_licenses(numbers, catalogue)
    local counts = new_counts()
    for _, number in ipairs(numbers) do
        if catalogue.licenses[number] then
            add(counts, catalogue.licenses[number])
        end
    end
    return counts
end

-- The licenses of a choice's QPUs, each once; nil if one of the QPUs has none, since the choice needs none then.
local function licenses_of(numbers, catalogue)
    local found, seen = {}, {}
    for _, number in ipairs(numbers) do
        local license = catalogue.licenses[number]
        if not license then
            return nil
        end
        if not seen[license] then
            found[#found + 1] = license
        end
        seen[license] = true
    end
    return found
end

-- How many of a license a job may have, and the QPUs behind it, for a message; nil if it is not a QPU's.
local function capacity_of(license, catalogue)
    local shared, number = catalogue.shared[license], catalogue.by_license[license]
    if shared then
        return shared.capacity, shared.names
    elseif number then
        return catalogue.shelf_of[number].capacity, printable(catalogue.names[number])
    end
    return nil
end

-- Split a license list into the text without QPU licenses and the names of these. The syntax is `a:2,b;c=1(n1)`
-- (src/slurmctld/licenses.c, _build_license_list()), in newer releases also `a|b`.
local function split_licenses(text, catalogue)
    local others, ours = {}, {}
    if #text > MAX_FIELD_BYTES then
        return text, ours -- Slurm refuses it
    end
    for word in text:gmatch("[^,;|]+") do
        local name = word:match("^[ \t]*([^:=( \t]*)")
        if catalogue.by_license[name] then
            ours[#ours + 1] = name
        else
            others[#others + 1] = word
        end
    end
    if #ours == 0 then
        return text, ours
    end
    return table.concat(others, text:find("|", 1, true) and "|" or ","), ours
end

local function refuse_licenses(sentence, ...)
    refuse(string.format(sentence, ...), slurm.ESLURM_INVALID_LICENSES)
end

-- A QPU license taken with --licenses would keep jobs with --qpu waiting for an idle QPU.
local function refuse_by_hand(license, catalogue)
    local _, names = capacity_of(license, catalogue)
    local first = catalogue.names[catalogue.by_license[license]]
    local sentence = "%s is the license of %s: ask for it with --qpu=%s, not with --licenses"
    refuse_licenses(sentence, license, names, printable(first))
end

-- Add the licenses that a job needs for its QPUs to its other ones; refuse lists that Slurm would not take.
local function join_licenses(others, needed, catalogue)
    local words = { others ~= "" and others or nil }
    for _, license in ipairs(needed.names) do
        local capacity, names = capacity_of(license, catalogue)
        local count = needed.count[license]
        if capacity and count > capacity then
            local sentence = "--qpu needs %d of the license %s (for %s), more than its capacity of %d"
            refuse_licenses(sentence, count, license, names, capacity)
        end
        words[#words + 1] = string.format("%s:%d", license, count)
    end
    if others:find("|", 1, true) and #needed.names > 0 then
        refuse_licenses("--licenses with | cannot be combined with --qpu: Slurm has no list that mixes OR and AND")
    end
    local text = table.concat(words, ",")
    if #text > MAX_FIELD_BYTES then
        refuse_licenses("--qpu needs more licenses than Slurm accepts in one job")
    end
    return text
end

-- --- slots --------------------------------------------------------------------------------------------------
--
-- A QPU may be shared by slots, of which a job has as many as it asks for of a license, with --licenses.

-- The licenses of slots that a list asks for, in which each counts. One that is only asked for among others (`a|b`)
-- counts as well: Prolog sees which one the job got.
local function slots_in(text, catalogue)
    local found = {}
    if next(catalogue.of_slots) and #text <= MAX_FIELD_BYTES then
        for word in text:gmatch("[^,;|]+") do
            local name, count = word:match("^[ \t]*([^:=( \t]*)[:=]?(%d*)")
            if catalogue.of_slots[name] and (count == "" or tonumber(count) > 0) then
                found[name] = true
            end
        end
    end
    return found
end

-- The sentence for a component that Slurm gives no licenses.
local function first_component_only(qpus)
    local sentence = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=%s there"
    return string.format(sentence, printable(qpus))
end

-- Why a job that has asked for these slots may not have a QPU; nil if it may.
local function slots_fault(number, asked, catalogue, is_further)
    local license = catalogue.shelf_of[number].slots
    if not license or asked[license] then
        return nil
    elseif is_further then
        return first_component_only(catalogue.names[number])
    end
    local sentence = "%s is shared by slots, and this job has none: ask for some with --licenses=%s:NUMBER"
    return string.format(sentence, printable(catalogue.names[number]), license)
end

-- Refuse QPUs for which the job has no slots, and drop them from the candidates of choices.
--
-- is_further: whether the job is a component that Slurm gives no licenses.
local function check_slots(named, slots, licenses, catalogue, is_further)
    if not next(catalogue.of_slots) then
        return
    end
    local asked, reasons = slots_in(licenses, catalogue), {}
    for _, number in ipairs(named) do
        reasons[#reasons + 1] = slots_fault(number, asked, catalogue, is_further)
    end
    for _, slot in ipairs(slots) do
        local kept, faults = {}, {}
        for _, number in ipairs(slot.candidates) do
            local fault = slots_fault(number, asked, catalogue, is_further)
            local list = fault and faults or kept
            list[#list + 1] = fault or number
        end
        for _, fault in ipairs(#kept == 0 and faults or {}) do
            reasons[#reasons + 1] = fault
        end
        slot.candidates = kept
    end
    if #reasons > 0 then
        local told = table.concat(reasons, "; ", 1, math.min(#reasons, MAX_NAMES))
        refuse_licenses("%s", told .. (#reasons > MAX_NAMES and "; ..." or ""))
    end
end

-- --- markers -----------------------------------------------------------------------------------------------
--
-- A word in a job's AdminComment for each choice: the licenses it may be moved between, for `qrmi-slurm sensor`.

local MARKER = "qrmi-slurm:any="
local MARKER_PATTERN = " qrmi%-slurm:any=(%S*)"

-- A comment without its markers, and what the markers say.
local function split_comment(text)
    local markers = {}
    local rest = (" " .. text):gsub(MARKER_PATTERN, function(licenses)
        markers[#markers + 1] = licenses
        return ""
    end)
    return rest:sub(1, 1) == " " and rest:sub(2) or rest, markers
end

-- Give a job's comment these markers and no others.
local function set_markers(job_desc, markers)
    local comment = job_desc.admin_comment or ""
    local rest = split_comment(comment)
    local words = { rest ~= "" and rest or nil }
    for _, licenses in ipairs(markers) do
        words[#words + 1] = MARKER .. licenses
    end
    local marked = table.concat(words, " ")
    if marked ~= comment then
        job_desc.admin_comment = marked
    end
end

-- --- submission --------------------------------------------------------------------------------------------

-- Choose a QPU for each slot. Sets slot.licenses, in the catalogue's order, to what the choice may be moved between.
local function choose(slots, catalogue)
    for _, slot in ipairs(slots) do
        slot.licenses = licenses_of(slot.candidates, catalogue)
        take_turns(slot, catalogue)
    end
    assign_or_refuse(slots, catalogue)
    turn = turn + #slots
end

-- Count the chosen QPUs' licenses; return the markers of those choices that could have another one.
local function add_chosen(needed, slots, catalogue)
    local markers = {}
    for _, slot in ipairs(slots) do
        if slot.licenses then
            add(needed, catalogue.licenses[slot.chosen])
            if #slot.licenses > 1 then
                markers[#markers + 1] = table.concat(slot.licenses, "|")
            end
        end
    end
    return markers
end

-- What the job asks for with --licenses, minus the QPU licenses that its --qpu adds anyway; refuse other QPU licenses.
local function other_licenses(asked, needed, catalogue)
    local others, ours = split_licenses(asked, catalogue)
    for _, license in ipairs(ours) do
        if not needed.count[license] then
            refuse_by_hand(license, catalogue)
        end
    end
    return others
end

-- Whether Slurm refuses licenses for this job: from 23.02 on it does so in all but the first component of a
-- heterogeneous job (src/slurmctld/proc_req.c). Only these releases have ESLURM_NOT_HET_JOB in Lua. The offset of other
-- jobs is NO_VAL.
local function is_further_component(job_desc)
    local offset = job_desc.het_job_offset or 0
    return slurm.ESLURM_NOT_HET_JOB ~= nil and offset > 0 and offset < MAX_COMPONENTS
end

local function tell_of_notice(number, catalogue)
    local notice = catalogue.shelf_of[number].notice
    if notice then
        local sentence = "%s is out of service (%s); the job waits until it is back"
        local name = printable(catalogue.names[number])
        slurm.log_user("%s", PREFIX .. string.format(sentence, name, printable(notice)))
    end
end

local function submit(job_desc, part_list, selection)
    local catalogue = usable_catalogue()
    local named, slots = resolve(selection, catalogue, person_of(job_desc, nil, part_list))
    local asked = job_desc.licenses or ""
    check_slots(named, slots, asked, catalogue, is_further_component(job_desc))
    choose(slots, catalogue)
    local needed = count_licenses(named, catalogue)
    local markers = add_chosen(needed, slots, catalogue)
    local licenses = join_licenses(other_licenses(asked, needed, catalogue), needed, catalogue)
    if #needed.names > 0 and is_further_component(job_desc) then
        refuse(first_component_only(selection))
    end
    if licenses ~= asked then
        job_desc.licenses = licenses
    end
    set_markers(job_desc, markers)
    for _, number in ipairs(named) do
        tell_of_notice(number, catalogue)
    end
    for _, slot in ipairs(slots) do
        tell_of_notice(slot.chosen, catalogue)
    end
end

local function submit_without_qpu(job_desc)
    local catalogue = read_catalogue()
    if catalogue then
        local _, ours = split_licenses(job_desc.licenses, catalogue)
        if #ours > 0 then
            refuse_by_hand(ours[1], catalogue)
        end
    end
end

--- Add the licenses of a new job's QPUs to the job, or refuse it.
-- Call it last in slurm_job_submit(): it does not see later changes.
-- @param job_desc the job, as Slurm passes it
-- @param part_list the partitions, as Slurm passes them
-- @param submit_uid not used
-- @return slurm.SUCCESS or slurm.ERROR
function M.job_submit(job_desc, part_list, submit_uid) -- luacheck: no unused args
    return guarded(function(has_qpu)
        local selection = selection_of(job_desc)
        if selection then
            has_qpu()
            submit(job_desc, part_list, selection)
        elseif job_desc.licenses then
            submit_without_qpu(job_desc)
        end
    end)
end

-- --- changes -----------------------------------------------------------------------------------------------

-- Order a choice's licenses: first those asked for now, then those that the job has, then the others.
local function preferred(licenses, asked, had)
    local is_ours, found = {}, {}
    for _, license in ipairs(licenses) do
        is_ours[license] = true
    end
    for _, list in ipairs({ asked, had, licenses }) do
        for _, license in ipairs(list) do
            if is_ours[license] then
                found[#found + 1] = license
                is_ours[license] = nil
            end
        end
    end
    return found
end

-- Whether a person may use a QPU that has this license.
local function is_open(license, catalogue, person)
    local shared, number = catalogue.shared[license], catalogue.by_license[license]
    for _, rule in ipairs(shared and shared.rules or {}) do
        if not verdict(rule, catalogue, person) then
            return true
        end
    end
    return not shared and number ~= nil and not verdict(catalogue.shelf_of[number].rule, catalogue, person)
end

-- A slot for each marker, with licenses as candidates: those that the owner may still use, else all of them.
local function marked_slots(markers, asked, had, catalogue, person)
    local found = {}
    for _, marker in ipairs(markers) do
        local all, usable = {}, {}
        for license in marker:gmatch("[^|]+") do
            all[#all + 1] = license
            usable[#usable + 1] = is_open(license, catalogue, person) and license or nil
        end
        found[#found + 1] = { candidates = preferred(#usable > 0 and usable or all, asked, had) }
    end
    return found
end

-- The licenses that a waiting job needs for its QPUs after a change. A choice keeps its license unless the change asks
-- for another one of it, or the owner may no longer use that QPU. A choice that had only one license to begin with has
-- no marker: it keeps a license that the job has and nothing else explains.
local function needed_after(named, slots, markers, asked, had, catalogue, person)
    local needed = count_licenses(named, catalogue)
    local marked = marked_slots(markers, asked, had, catalogue, person)
    local is_explained = {}
    for _, slot in ipairs(marked) do
        for _, license in ipairs(slot.candidates) do
            is_explained[license] = true
        end
    end
    assign(marked, {})
    for _, slot in ipairs(marked) do
        add(needed, slot.chosen or slot.candidates[1])
    end
    for _, license in ipairs(#slots > #marked and had or {}) do
        if not needed.count[license] and not is_explained[license] then
            add(needed, license)
        end
    end
    return needed
end

local function is_pending(job_rec)
    return (job_rec.job_state or 0) % JOB_STATE_BASE == JOB_PENDING
end

-- Slurm passes the same text for each component of a heterogeneous job (src/slurmctld/job_mgr.c, update_job_str()),
-- with what was added to it for the component before. So QPU licenses are dropped from it rather than refused.
local function modify_without_qpu(job_desc, job_rec)
    local catalogue = read_catalogue()
    if not catalogue or not is_pending(job_rec) then
        return
    end
    local others, ours = split_licenses(job_desc.licenses, catalogue)
    if #ours == 0 then
        return
    end
    if others == "" and (job_rec.het_job_id or 0) == 0 then
        refuse_by_hand(ours[1], catalogue)
    end
    job_desc.licenses = others -- "" leaves the job's licenses as they are
end

local function modify_waiting(job_desc, job_rec, part_list, selection)
    local changes_access = job_desc.account ~= nil or job_desc.partition ~= nil or job_desc.qos ~= nil
    if not changes_access and job_desc.licenses == nil then
        return
    end
    local catalogue = usable_catalogue()
    local named, slots, unknown = sort_terms(terms_of(selection), catalogue)
    -- Other changes do not ask again whether the owner may use the QPUs: a person of unknowns may use all.
    local person = new_person(function()
        return {}
    end)
    if changes_access then
        person = person_of(job_desc, job_rec, part_list)
        check_access(named, slots, unknown, catalogue, person)
    elseif #unknown > 0 then
        refuse(unknown_qpus(unknown, catalogue))
    end
    local others, had = split_licenses(job_rec.licenses or "", catalogue)
    local asked = {}
    if job_desc.licenses ~= nil then
        others, asked = split_licenses(job_desc.licenses, catalogue)
    end
    local _, markers = split_comment(job_rec.admin_comment or "")
    if job_desc.licenses ~= nil then
        check_slots(named, {}, job_desc.licenses, catalogue, false)
    end
    local needed = needed_after(named, slots, markers, asked, had, catalogue, person)
    local licenses = join_licenses(others, needed, catalogue)
    if licenses ~= (job_desc.licenses or job_rec.licenses or "") then
        job_desc.licenses = licenses
    end
end

-- Slurm lets users drop a running job's licenses; the next job would then start beside it on the same QPU.
local function modify_running(job_desc, job_rec, modify_uid)
    if job_desc.licenses == nil or modify_uid ~= job_rec.user_id or modify_uid == 0 then
        return
    end
    local catalogue = usable_catalogue()
    local _, had = split_licenses(job_rec.licenses or "", catalogue)
    local has_slots = next(slots_in(job_rec.licenses or "", catalogue)) ~= nil
    if (#had > 0 or has_slots) and job_desc.licenses ~= job_rec.licenses then
        refuse_licenses("a running job keeps the licenses of its QPUs")
    end
end

--- Keep the licenses of a job's QPUs right while it is changed, or refuse the change.
-- Call it last in slurm_job_modify(): it does not see later changes.
-- @param job_desc the change, as Slurm passes it
-- @param job_rec the job as it is, as Slurm passes it
-- @param part_list the partitions, as Slurm passes them
-- @param modify_uid who asks for the change, as Slurm passes it
-- @return slurm.SUCCESS, slurm.ERROR, slurm.ESLURM_ACCESS_DENIED or slurm.ESLURM_INVALID_LICENSES
function M.job_modify(job_desc, job_rec, part_list, modify_uid)
    return guarded(function(has_qpu)
        if job_desc.admin_comment ~= nil then
            local _, markers = split_comment(job_rec.admin_comment or "")
            set_markers(job_desc, markers)
        end
        local selection = selection_of(job_rec)
        if not selection then
            if job_desc.licenses ~= nil then
                modify_without_qpu(job_desc, job_rec)
            end
            return
        end
        has_qpu()
        if is_pending(job_rec) then
            modify_waiting(job_desc, job_rec, part_list, selection)
        else
            modify_running(job_desc, job_rec, modify_uid)
        end
    end, true)
end

-- --- login node --------------------------------------------------------------------------------------------

-- The value of --qpu on a command line that asks for an allocation. A step chooses among what its job holds, and
-- TaskProlog judges that.
local function selection_of_options(options)
    local plugin = type(options.spank) == "table" and options.spank.spank_qrmi
    local jobid = given(options.jobid) or "" -- "unset" without --jobid
    if options.type == "srun" and (os.getenv("SLURM_JOB_ID") or jobid:match("^%d+")) then
        return nil
    end
    return type(plugin) == "table" and plugin.qpu or nil
end

--- Refuse on the login node what slurmctld would refuse.
-- Without a catalogue on the node, or after an internal error, the command goes on.
-- @param options the command line, as Slurm passes it to slurm_cli_pre_submit()
-- @return slurm.SUCCESS or slurm.ERROR
function M.cli_pre_submit(options)
    local _, problem = pcall(function()
        begin_work()
        local selection = selection_of_options(options)
        local catalogue = selection and read_catalogue()
        if catalogue then
            local _, slots = resolve(selection, catalogue, person_of_options(options), true)
            assign_or_refuse(slots, catalogue)
        end
    end)
    local refusal = refusal_in(problem)
    if refusal then
        slurm.log_error("%s", PREFIX .. refusal)
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

return M
