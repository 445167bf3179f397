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
-- Runs on Lua 5.1 to 5.4. Slurm files named in comments are those of Slurm's source tree.
--
-- Contents, each section built on those above it:
--
--   limits                      sizes and counts, with their sources
--   text                        characters, safe printing, lists
--   refusals                    how a call ends: taken, refused, or failed
--   suggestions                 "did you mean"
--   catalogue                   find, read and check it
--   patterns                    `ibm_*`, `q[1-4]`, as Python's fnmatch reads them
--   selection                   the value of --qpu, its terms, and the QPUs that fit them
--   access rules                who may use a QPU
--   person                      who asks
--   choices                     terms that leave the QPU open: their candidates, and which one the job gets
--   licenses                    the job's license list
--   markers                     what a choice leaves in the job's AdminComment
--   submission                  job_submit
--   changes                     job_modify
--   login node                  cli_pre_submit

local M = {}

-- The catalogue's path, for a site that does not keep it beside slurm.conf.
M.catalogue = nil

-- --- limits ------------------------------------------------------------------------------------------------

-- How many names a message lists; a site may have thousands.
local MAX_NAMES = 20

-- The longest piece of user text in a message, in characters.
local MAX_CHARS = 200

-- The longest --qpu, in bytes. spank_qrmi.c enforces it too, but not for jobs that bypass our plugin.
local MAX_SELECTION_BYTES = 4096

-- "Did you mean": the lowest similarity and the longest word to compare, as in qrmi_slurm/text.py.
local MIN_SIMILARITY = 0.75
local MAX_COMPARED_CHARS = 100

-- Comparing with more names would hold up slurmctld.
local MAX_COMPARED_NAMES = 1000

-- src/slurmctld/job_mgr.c, _test_job_desc_fields(): Slurm refuses longer lists with "Pathname ... too long".
local MAX_LICENSES_BYTES = 1024

-- slurm/slurm.h, enum job_states: the low byte of job_state is the state, the rest are flags.
local JOB_STATE_BASE = 256
local JOB_PENDING = 0

-- slurm/slurm.h, MAX_HET_JOB_COMPONENTS.
local MAX_COMPONENTS = 128

-- --- text --------------------------------------------------------------------------------------------------

-- Split UTF-8 text into characters.
local function characters(text)
    local found = {}
    for index = 1, #text do
        local byte = text:byte(index)
        if byte >= 128 and byte < 192 and #found > 0 then
            found[#found] = found[#found] .. text:sub(index, index)
        else
            found[#found + 1] = text:sub(index, index)
        end
    end
    return found
end

local ESCAPES = {
    ["\n"] = "\\n",
    ["\r"] = "\\r",
    ["\t"] = "\\t",
    ["\226\128\168"] = "\\u2028",
    ["\226\128\169"] = "\\u2029",
}

local function escaped(char)
    local first, second = char:byte(1, 2)
    if ESCAPES[char] then
        return ESCAPES[char]
    elseif first < 32 or first == 127 then
        return string.format("\\x%02x", first)
    elseif first == 194 and second and second < 160 and #char == 2 then
        return string.format("\\x%02x", second)
    end
    return char
end

-- Make user text safe for one line of a message: control characters escaped, cut to MAX_CHARS.
local function printable(text)
    local chars = characters(text)
    for index, char in ipairs(chars) do
        chars[index] = escaped(char)
    end
    local clean = characters(table.concat(chars))
    if #clean > MAX_CHARS then
        return table.concat(clean, "", 1, MAX_CHARS - 3) .. "..."
    end
    return table.concat(clean)
end

-- The first `max` texts (all by default), printable, with commas between them.
local function printable_list(texts, max)
    local found = {}
    for index = 1, math.min(#texts, max or #texts) do
        found[index] = printable(texts[index])
    end
    return table.concat(found, ", ")
end

local function trimmed(text)
    return (text:gsub("^[ \t]+", ""):gsub("[ \t]+$", ""))
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

local function contains(list, value)
    for _, item in ipairs(list) do
        if item == value then
            return true
        end
    end
    return false
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

-- Tell the admin why a job could not be judged.
local function log_fault(problem)
    local fault = type(problem) == "table" and problem.fault
    local reason = fault and fault .. "; run: qrmi-slurm catalogue" or "internal error: " .. tostring(problem)
    slurm.log_error("%s", PREFIX .. reason)
end

-- Run a function and return the code for Slurm. No error escapes: up to 25.05 Slurm would let the job through, without
-- its licenses (src/plugins/job_submit/lua/job_submit_lua.c).
--
-- work: it calls its argument once it knows that the job has --qpu. Until then an internal error lets the job pass,
--   afterwards it refuses the job.
-- has_codes: whether a refusal may return one of Slurm's own codes, for which scontrol prints Slurm's own words.
local function guarded(work, has_codes)
    local has_qpu = false
    local is_done, problem = pcall(work, function()
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

-- The sentence for terms that no QPU of the site fits.
local function unknown_qpus(terms, names)
    local words = {}
    for index, text in ipairs(terms) do
        local near = near_match(text, names)
        words[index] = printable(text) .. (near and " (did you mean " .. printable(near) .. "?)" or "")
    end
    local sentence = (#terms == 1 and "unknown QPU: " or "unknown QPUs: ") .. table.concat(words, ", ")
    if #names == 0 then
        return sentence
    end
    local more = #names > MAX_NAMES and string.format(", ... and %d more", #names - MAX_NAMES) or ""
    return sentence .. "; known QPUs: " .. printable_list(names, MAX_NAMES) .. more
end

-- --- catalogue ---------------------------------------------------------------------------------------------

local CATALOGUE_FILE = "qrmi_catalogue.lua"
local CATALOGUE_VERSION = 1

-- The access rules, with the words for one value of each, for several, and for a job without one.
local RULES = {
    users = { one = "user", many = "users" },
    groups = { one = "group", many = "groups" },
    partitions = { one = "partition", many = "partitions" },
    accounts = { one = "account", many = "accounts", none = "a job without an account" },
    qos = { one = "QOS", many = "QOS", none = "a job without a QOS" },
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

local function is_list_of(is_valid, list)
    if type(list) ~= "table" then
        return false
    end
    for _, item in ipairs(list) do
        if not is_valid(item) then
            return false
        end
    end
    return true
end

local function is_string(value)
    return type(value) == "string"
end

local function is_group(group)
    return type(group) == "table"
        and is_string(group.name)
        and (group.members == nil or is_list_of(is_string, group.members))
end

local function is_allow(allow)
    if type(allow) ~= "table" then
        return false
    end
    for rule, values in pairs(allow) do
        -- An unknown rule comes from a later version; skipping it would let everybody in.
        if not RULES[rule] or not is_list_of(rule == "groups" and is_group or is_string, values) then
            return false
        end
    end
    return true
end

local function is_qpu(qpu)
    return type(qpu) == "table"
        and is_string(qpu.name)
        and is_list_of(is_string, qpu.types)
        and (qpu.license == nil or is_string(qpu.license))
        and type(qpu.capacity) == "number"
        and (qpu.allow == nil or is_allow(qpu.allow))
        and (qpu.notice == nil or is_string(qpu.notice))
end

-- Index the QPUs by name and by license. QPUs that share a license have the lowest of their capacities.
local function index_of(qpus)
    local found = { qpus = qpus, names = {}, by_name = {}, by_license = {} }
    for index, qpu in ipairs(qpus) do
        found.names[index] = qpu.name
        found.by_name[qpu.name] = qpu
        found.has_dynamic = found.has_dynamic or qpu.dynamic
        if qpu.license then
            local shared = found.by_license[qpu.license] or { capacity = qpu.capacity, names = {} }
            shared.capacity = math.min(shared.capacity, qpu.capacity)
            shared.names[#shared.names + 1] = qpu.name
            found.by_license[qpu.license] = shared
        end
    end
    return found
end

-- The catalogue that a text holds, or nil and what is wrong with it.
local function parse_catalogue(text, path)
    local value, fault = value_of(text, "=" .. CATALOGUE_FILE)
    if fault then
        return nil, path .. " " .. fault
    end
    if type(value) ~= "table" or value.version ~= CATALOGUE_VERSION or type(value.qpus) ~= "table" then
        return nil, path .. " is not a catalogue of this version of qrmi-slurm"
    end
    for index, qpu in ipairs(value.qpus) do
        if not is_qpu(qpu) then
            return nil, string.format("%s: QPU no. %d is malformed", path, index)
        end
    end
    return index_of(value.qpus)
end

-- The last catalogue that was read, with its path and text.
local cache = {}

-- The current catalogue, or nil and why it cannot be used.
local function read_catalogue()
    local path = M.catalogue or (home .. CATALOGUE_FILE)
    local file, problem = io.open(path, "r")
    if not file then
        return nil, "cannot read the catalogue: " .. tostring(problem)
    end
    local text = file:read("*a")
    file:close()
    if type(text) ~= "string" then
        return nil, path .. " cannot be read"
    end
    if cache.path ~= path or cache.text ~= text then
        local catalogue, fault = parse_catalogue(text, path)
        if not catalogue then
            return nil, fault
        end
        cache = { path = path, text = text, catalogue = catalogue }
    end
    return cache.catalogue
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

-- The test for the character class that opens at `open`, and the index after it; nil if the class is not closed.
local function class_at(pattern, open)
    local is_negated = pattern[open + 1] == "!"
    local first = open + (is_negated and 2 or 1)
    local stop = end_of_class(pattern, first)
    if not stop then
        return nil
    end
    local ranges = ranges_of(pattern, first, stop)
    return function(char)
        return is_in_range(code_of(char), ranges) ~= is_negated
    end, stop + 1
end

local function any_character()
    return true
end

-- One step of a pattern and the index after it: "*", or a test for one character.
local function step_at(pattern, index)
    local char = pattern[index]
    if char == "*" then
        return "*", index + 1
    elseif char == "?" then
        return any_character, index + 1
    elseif char == "[" then
        local test, following = class_at(pattern, index)
        if test then
            return test, following
        end
    end
    return function(other)
        return other == char
    end, index + 1
end

-- A pattern's steps, as Python's fnmatch reads it.
local function steps_of(pattern)
    local chars = characters(pattern)
    local steps = {}
    local index = 1
    while index <= #chars do
        steps[#steps + 1], index = step_at(chars, index)
    end
    return steps
end

-- Whether a name's characters fit a pattern's steps. On a mismatch, the last star takes one character more.
local function fits(chars, steps)
    local at, step = 1, 1
    local star, resumed
    while at <= #chars do
        if steps[step] == "*" then
            star, resumed = step, at
            step = step + 1
        elseif steps[step] and steps[step](chars[at]) then
            at, step = at + 1, step + 1
        elseif star then
            resumed = resumed + 1
            at, step = resumed, star + 1
        else
            return false
        end
    end
    while steps[step] == "*" do
        step = step + 1
    end
    return steps[step] == nil
end

-- --- selection ---------------------------------------------------------------------------------------------

local PREFIXES = { "any:", "least-busy:" }

-- The value of --qpu as Prolog will see it, or nil if the job has none.
--
-- slurmd puts SPANK_ in front of names that do not begin with it (src/common/slurm_protocol_defs.c,
-- valid_spank_job_env()). If a name occurs twice, Prolog sees the last value, or an earlier one if the last is too long
-- (src/common/env.c, env_array_merge()). Our plugin sets it once, so two different values are a forgery.
local function selection_of(spank_job_env)
    if type(spank_job_env) ~= "table" then
        return nil
    end
    local found
    for _, entry in pairs(spank_job_env) do
        local value = entry:match("^QRMI_QPU=(.*)$") or entry:match("^SPANK_QRMI_QPU=(.*)$")
        if value and found and found ~= value then
            refuse("the job's SPANK environment has two different values of --qpu")
        end
        found = value or found
    end
    if found and #found > MAX_SELECTION_BYTES then
        refuse(string.format("--qpu has more than %d bytes", MAX_SELECTION_BYTES))
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

-- The terms of a selection. A name counts once, a choice each time.
local function terms_of(selection)
    local terms, seen = {}, {}
    for part in (selection .. ","):gmatch("([^,]*),") do
        local word = trimmed(part)
        if word == "" then
            refuse("--qpu=" .. printable(selection) .. ": a name is empty; write --qpu=NAME or --qpu=NAME,NAME")
        end
        local term = term_of(word)
        if term.is_choice or not seen[word] then
            terms[#terms + 1] = term
        end
        seen[word] = true
    end
    return terms
end

-- A type's name in lower case and without punctuation, so that all its spellings are equal.
local function canonical(type_name)
    return (type_name:lower():gsub("[^%w\128-\255]", ""))
end

-- Whether a word names one of a QPU's types, with or without the vendor that QRMI's class names begin with.
local function is_type(word, types)
    local wanted = canonical(word)
    for _, name in ipairs(types) do
        if wanted == canonical(name) or wanted == "ibm" .. canonical(name) then
            return true
        end
    end
    return false
end

-- The QPUs that fit a term, whoever asks.
local function fitting(term, catalogue)
    local named = catalogue.by_name[term.text]
    if named or not term.is_choice then
        return { named }
    end
    local found, steps = {}, steps_of(term.pattern)
    for _, qpu in ipairs(catalogue.qpus) do
        if fits(characters(qpu.name), steps) or (term.prefix and is_type(term.pattern, qpu.types)) then
            found[#found + 1] = qpu
        end
    end
    return found
end

-- --- access rules ------------------------------------------------------------------------------------------

-- The values that a rule lets in, for a message: "accounts a, b"; nil if there are none.
local function listed(rule, values)
    if not values or #values == 0 then
        return nil
    end
    return (#values == 1 and RULES[rule].one or RULES[rule].many) .. " " .. printable_list(values)
end

-- The sentence for a subject that may not use a QPU. allowed: whom it is for; nil is nobody.
local function denial(subject, qpu, allowed)
    local whom = allowed and "it is for " .. allowed or "nobody may"
    return subject .. " may not use " .. printable(qpu.name) .. ": " .. whom
end

local function group_names(groups)
    local names = {}
    for index, group in ipairs(groups) do
        names[index] = group.name
    end
    return names
end

-- Whether a person is in one of the groups; nil if unknown because a directory does not list a group's members.
local function is_member(groups, person)
    local answer = false
    for _, group in ipairs(groups) do
        if group.gid and group.gid == person.gid then
            return true
        elseif not group.members then
            answer = nil
        elseif contains(group.members, person.user) then
            return true
        end
    end
    return answer
end

-- Why a person may not use a QPU by the rules for users and groups, of which one has to let them in; else nil.
local function user_fault(qpu, person)
    local users, groups = qpu.allow.users, qpu.allow.groups
    if not (users or groups) or not person.user then
        return nil
    end
    if contains(users or {}, person.user) or is_member(groups or {}, person) ~= false then
        return nil
    end
    local allowed = { listed("users", users) }
    allowed[#allowed + 1] = listed("groups", group_names(groups or {}))
    return denial("user " .. printable(person.user), qpu, #allowed > 0 and table.concat(allowed, " or ") or nil)
end

-- Why a job with this partition, account or QOS may not use a QPU; else nil.
local function value_fault(qpu, rule, value)
    local allowed = qpu.allow[rule]
    if value == nil or not allowed or contains(allowed, value) then
        return nil
    end
    local subject = value and RULES[rule].one .. " " .. printable(value) or RULES[rule].none
    return denial(subject, qpu, listed(rule, allowed))
end

-- Why a person may not use a QPU; nil where they may, or where only Prolog can tell.
local function access_fault(qpu, person)
    if not qpu.allow then
        return nil
    end
    local fault = user_fault(qpu, person)
    for _, partition in ipairs(person.partitions or {}) do
        fault = fault or value_fault(qpu, "partitions", partition)
    end
    return fault or value_fault(qpu, "accounts", person.account) or value_fault(qpu, "qos", person.qos)
end

-- --- person ------------------------------------------------------------------------------------------------
--
-- A table: user, gid, partitions (a list), account, qos. Of these, nil means unknown here, false that the job has none.

-- The partitions that a job may start in: those it names, else the default one. Empty with a reservation, whose
-- partition it may be (src/slurmctld/job_mgr.c, _get_job_parts()); slurm.reservations is not read for it, because it
-- may point to reservations that are gone.
local function partitions_of(text, has_reservation, part_list)
    local found = {}
    for name in (text or ""):gmatch("[^,]+") do
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
    return name and name:lower()
end

-- The person behind a new job or a change. job_rec: the job as it is; nil for a new one.
local function person_of(job_desc, job_rec, part_list)
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
end

-- What the command line says about the person; only slurmctld knows the rest.
local function person_of_options(options)
    return {
        partitions = partitions_of(given(options.partition)),
        account = effective(options.account),
        qos = effective(options.qos),
    }
end

-- --- choices -----------------------------------------------------------------------------------------------
--
-- A slot is a table for one term that leaves the QPU open: its term, the QPUs that fit it, its candidates (those that
-- this job may get), and the chosen one.

-- Where the next job begins among a slot's candidates, so that jobs take turns.
local turn = os.time()

local function none_left(term)
    return printable(term.text) .. ": no other QPU is left for it"
end

-- Sort the terms of a selection into the QPUs that it names and a slot for each choice; refuse unknown ones.
local function sort_terms(terms, catalogue)
    local named, slots, unknown = {}, {}, {}
    for _, term in ipairs(terms) do
        local found = fitting(term, catalogue)
        if #found == 0 then
            unknown[#unknown + 1] = term.text
        elseif catalogue.by_name[term.text] then
            named[#named + 1] = found[1]
        else
            slots[#slots + 1] = { term = term, fitting = found }
        end
    end
    if #unknown > 0 then
        refuse(unknown_qpus(unknown, catalogue.names))
    end
    return named, slots
end

-- Set a slot's candidates: what fits, is not taken by name, and is open to the person. If none are left, return why.
local function set_candidates(slot, is_taken, person)
    local reasons = {}
    slot.candidates = {}
    for _, qpu in ipairs(slot.fitting) do
        local fault = access_fault(qpu, person)
        if fault then
            reasons[#reasons + 1] = fault
        elseif not is_taken[qpu] then
            slot.candidates[#slot.candidates + 1] = qpu
        end
    end
    if #slot.candidates > 0 then
        return nil
    elseif #reasons == 0 then
        return none_left(slot.term)
    end
    return table.concat(reasons, "; ", 1, math.min(#reasons, MAX_NAMES))
end

-- The QPUs that a selection names and the slots of its choices, for a person; refuse what they cannot have.
local function resolve(selection, catalogue, person)
    local terms = terms_of(selection)
    local named, slots = sort_terms(terms, catalogue)
    if #terms > #catalogue.qpus and not catalogue.has_dynamic then
        refuse(none_left(terms[#terms]))
    end
    local faults, is_taken = {}, {}
    for _, qpu in ipairs(named) do
        faults[#faults + 1] = access_fault(qpu, person)
        is_taken[qpu] = not qpu.dynamic
    end
    for _, slot in ipairs(slots) do
        faults[#faults + 1] = set_candidates(slot, is_taken, person)
    end
    if #faults > 0 then
        refuse(table.concat(faults, "; "), slurm.ESLURM_ACCESS_DENIED)
    end
    return named, slots
end

-- Order a slot's candidates: QPUs in service first, starting one further than the job before.
local function take_turns(slot)
    local ordered, out_of_service = {}, {}
    local count = #slot.candidates
    for index = 0, count - 1 do
        local qpu = slot.candidates[(turn + index) % count + 1]
        local list = qpu.notice and out_of_service or ordered
        list[#list + 1] = qpu
    end
    for _, qpu in ipairs(out_of_service) do
        ordered[#ordered + 1] = qpu
    end
    slot.candidates = ordered
end

-- Give a slot one of its candidates, if need be one whose holder can take another; return whether that worked. A
-- dynamic entry stands for several QPUs and can serve any number of slots.
local function place(slot, holders, tried)
    for _, candidate in ipairs(slot.candidates) do
        if not tried[candidate] then
            tried[candidate] = true
            local holder = holders[candidate]
            if candidate.dynamic or not holder or place(holder, holders, tried) then
                holders[candidate] = slot
                slot.chosen = candidate
                return true
            end
        end
    end
    return false
end

-- Give each slot one of its candidates, each candidate to one slot. Return the first slot that gets none, or nil.
local function assign(slots)
    local holders = {}
    for _, slot in ipairs(slots) do
        if not place(slot, holders, {}) then
            return slot
        end
    end
    return nil
end

local function assign_or_refuse(slots)
    local left_out = assign(slots)
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

local function count_licenses(qpus)
    local counts = new_counts()
    for _, qpu in ipairs(qpus) do
        if qpu.license then
            add(counts, qpu.license)
        end
    end
    return counts
end

-- The licenses of a choice's QPUs, each once; nil if one of the QPUs has none, since the choice needs none then.
local function licenses_of(qpus)
    local found, seen = {}, {}
    for _, qpu in ipairs(qpus) do
        if not qpu.license then
            return nil
        end
        if not seen[qpu.license] then
            found[#found + 1] = qpu.license
        end
        seen[qpu.license] = true
    end
    return found
end

-- Split a license list into the text without QPU licenses and the names of these. The syntax is `a:2,b;c=1(n1)`
-- (src/slurmctld/licenses.c, _build_license_list()), in newer releases also `a|b`.
local function split_licenses(text, catalogue)
    local others, ours = {}, {}
    for word in text:gmatch("[^,;|]+") do
        local name = trimmed(word:match("^[^:=(]*"))
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
    local names = catalogue.by_license[license].names
    local sentence = "%s is the license of %s: ask for it with --qpu=%s, not with --licenses"
    refuse_licenses(sentence, license, printable_list(names), printable(names[1]))
end

-- Add the licenses that a job needs for its QPUs to its other ones; refuse lists that Slurm would not take.
local function join_licenses(others, needed, catalogue)
    local words = { others ~= "" and others or nil }
    for _, license in ipairs(needed.names) do
        local shared, count = catalogue.by_license[license], needed.count[license]
        if shared and count > shared.capacity then
            local sentence = "--qpu needs %d of the license %s (for %s), more than its capacity of %d"
            refuse_licenses(sentence, count, license, printable_list(shared.names), shared.capacity)
        end
        words[#words + 1] = string.format("%s:%d", license, count)
    end
    if others:find("|", 1, true) and #needed.names > 0 then
        refuse_licenses("--licenses with | cannot be combined with --qpu: Slurm has no list that mixes OR and AND")
    end
    local text = table.concat(words, ",")
    if #text > MAX_LICENSES_BYTES then
        refuse_licenses("--qpu needs more licenses than Slurm accepts in one job")
    end
    return text
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
local function choose(slots)
    for _, slot in ipairs(slots) do
        slot.licenses = licenses_of(slot.candidates)
        take_turns(slot)
    end
    assign_or_refuse(slots)
    turn = turn + #slots
end

-- Count the chosen QPUs' licenses; return the markers of those choices that could have another one.
local function add_chosen(needed, slots)
    local markers = {}
    for _, slot in ipairs(slots) do
        if slot.licenses then
            add(needed, slot.chosen.license)
            if #slot.licenses > 1 then
                markers[#markers + 1] = table.concat(slot.licenses, "|")
            end
        end
    end
    return markers
end

-- What the job asks for with --licenses, minus the QPU licenses that its --qpu adds anyway; refuse other QPU licenses.
local function other_licenses(job_desc, needed, catalogue)
    local others, ours = split_licenses(job_desc.licenses or "", catalogue)
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

local function tell_of_notice(qpu)
    if qpu.notice then
        local sentence = "%s is out of service (%s); the job waits until it is back"
        slurm.log_user("%s", PREFIX .. string.format(sentence, printable(qpu.name), printable(qpu.notice)))
    end
end

local function submit(job_desc, part_list, selection)
    local catalogue = usable_catalogue()
    local named, slots = resolve(selection, catalogue, person_of(job_desc, nil, part_list))
    choose(slots)
    local needed = count_licenses(named)
    local markers = add_chosen(needed, slots)
    local licenses = join_licenses(other_licenses(job_desc, needed, catalogue), needed, catalogue)
    if #needed.names > 0 and is_further_component(job_desc) then
        local sentence = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=%s there"
        refuse(string.format(sentence, printable(selection)))
    end
    if licenses ~= (job_desc.licenses or "") then
        job_desc.licenses = licenses
    end
    set_markers(job_desc, markers)
    for _, qpu in ipairs(named) do
        tell_of_notice(qpu)
    end
    for _, slot in ipairs(slots) do
        tell_of_notice(slot.chosen)
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
        local selection = selection_of(job_desc.spank_job_env)
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
    local found, seen = {}, {}
    for _, list in ipairs({ asked, had, licenses }) do
        for _, license in ipairs(list) do
            if not seen[license] and contains(licenses, license) then
                found[#found + 1] = license
                seen[license] = true
            end
        end
    end
    return found
end

-- A slot for each marker, with licenses as candidates: those that the owner may still use, else all of them.
local function marked_slots(markers, slots, asked, had)
    local is_usable, found = {}, {}
    for _, slot in ipairs(slots) do
        for _, qpu in ipairs(slot.candidates) do
            is_usable[qpu.license or ""] = true
        end
    end
    for _, marker in ipairs(markers) do
        local all, usable = {}, {}
        for license in marker:gmatch("[^|]+") do
            all[#all + 1] = license
            usable[#usable + 1] = is_usable[license] and license or nil
        end
        found[#found + 1] = { candidates = preferred(#usable > 0 and usable or all, asked, had) }
    end
    return found
end

-- The licenses that a waiting job needs for its QPUs after a change. A choice keeps its license unless the change asks
-- for another one of it, or the owner may no longer use that QPU.
local function needed_after(named, slots, markers, asked, had)
    local needed = count_licenses(named)
    for _, slot in ipairs(slots) do
        local licenses = licenses_of(slot.fitting) -- those at submission, whatever the owner may use now
        if licenses and #licenses == 1 then
            add(needed, licenses[1])
        end
    end
    local marked = marked_slots(markers, slots, asked, had)
    assign(marked)
    for _, slot in ipairs(marked) do
        add(needed, slot.chosen or slot.candidates[1])
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
    -- Other changes do not ask again whether the owner may use the QPUs: a person of unknowns may use all.
    local person = changes_access and person_of(job_desc, job_rec, part_list) or {}
    local named, slots = resolve(selection, catalogue, person)
    local others, had = split_licenses(job_rec.licenses or "", catalogue)
    local asked = {}
    if job_desc.licenses ~= nil then
        others, asked = split_licenses(job_desc.licenses, catalogue)
    end
    local _, markers = split_comment(job_rec.admin_comment or "")
    local licenses = join_licenses(others, needed_after(named, slots, markers, asked, had), catalogue)
    if licenses ~= (job_desc.licenses or job_rec.licenses or "") then
        job_desc.licenses = licenses
    end
end

-- Slurm lets users drop a running job's licenses; the next job would then start beside it on the same QPU.
local function modify_running(job_desc, job_rec, modify_uid)
    if job_desc.licenses == nil or modify_uid ~= job_rec.user_id or modify_uid == 0 then
        return
    end
    local _, had = split_licenses(job_rec.licenses or "", usable_catalogue())
    if #had > 0 and job_desc.licenses ~= job_rec.licenses then
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
        local selection = selection_of(job_rec.spank_job_env)
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
        local selection = selection_of_options(options)
        local catalogue = selection and read_catalogue()
        if catalogue then
            local _, slots = resolve(selection, catalogue, person_of_options(options))
            assign_or_refuse(slots)
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
