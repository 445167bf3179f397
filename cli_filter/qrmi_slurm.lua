-- SPDX-License-Identifier: Apache-2.0
--
-- qrmi_slurm: what Slurm's Lua plugins do for jobs with --qpu.
--
--   job_submit, job_modify  slurmctld: each QPU's license is added to the job, and who asks for a QPU that is not
--                           known, or that he may not use, is told so
--   cli_pre_submit          sbatch, salloc and srun: the same words, before slurmctld is asked
--
-- job_submit.lua and cli_filter.lua beside this file use it; a file that a site has already needs one call of it.
-- What it knows of the QPUs is the catalogue, which `qrmi-slurm catalogue` makes from the config. Prolog judges again,
-- by the config itself: qrmi_slurm/selection.py, choice.py and access.py read --qpu and the rules as this file does.
--
-- For Lua 5.1 to 5.4. The paths in comments are those of Slurm's sources.

local M = {}

-- The catalogue's path, for a site that keeps it elsewhere than beside slurm.conf.
M.catalogue = nil

local CATALOGUE_FILE = "qrmi_catalogue.lua"
local CATALOGUE_VERSION = 1

local ANY = "any:"
local LEAST_BUSY = "least-busy:"

-- How many names a sentence lists; a site may have thousands.
local MAX_NAMES = 20

-- Longest text of a user's in a sentence, in characters.
local MAX_CHARS = 200

-- Longest --qpu, in bytes: spank_qrmi.c refuses longer ones, somebody's own program does not.
local MAX_SELECTION_BYTES = 4096

-- How alike a word has to be, and how long it may be, for "did you mean"; near_match.py has both.
local LIKENESS = 0.75
local MAX_NEAR_CHARS = 100

-- Comparing with more names would keep slurmctld waiting.
local MAX_NEAR_NAMES = 1000

-- src/slurmctld/job_mgr.c, _test_job_desc_fields(): what else would be "Pathname ... too long".
local MAX_LICENSES_BYTES = 1024

-- What a choice may come to, in the job's AdminComment: a word that `qrmi-slurm sensor` reads.
local MARKER = "qrmi-slurm:any="

-- slurm/slurm.h: a job's state is one of these bits, and flags; JOB_PENDING is 0.
local JOB_STATE_BASE = 256
local JOB_PENDING = 0

-- slurm/slurm.h, MAX_HET_JOB_COMPONENTS.
local MAX_COMPONENTS = 128

-- The next job's turn among the QPUs of a choice: another after each job.
local turn = os.time()

-- The catalogue that was read last, and its text.
local cache = {}

-- --- sentences ---------------------------------------------------------------------------------------------

-- End the work with a sentence for the user.
local function refuse(sentence, code)
    error({ refusal = sentence, code = code }, 0)
end

-- End the work since the catalogue is missing or broken; an admin reads why.
local function give_up(reason)
    error({ fault = reason }, 0)
end

-- The characters of a text, UTF-8.
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

-- A user's text, fit for one line of a message.
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

local function printables(texts)
    local found = {}
    for index, text in ipairs(texts) do
        found[index] = printable(text)
    end
    return table.concat(found, ", ")
end

-- --- the name that was meant -------------------------------------------------------------------------------

-- How many letters two words share in the same order, as Python's difflib counts it: the longest common piece, then the
-- same for what is left of it and for what is right of it.
local function shared_letters(a, a_from, a_to, b, b_from, b_to)
    local best, best_a, best_b = 0, a_from, b_from
    local before = {}
    for i = a_from, a_to do
        local row = {}
        for j = b_from, b_to do
            if a:byte(i) == b:byte(j) then
                local length = (before[j - 1] or 0) + 1
                row[j] = length
                if length > best then
                    best, best_a, best_b = length, i - length + 1, j - length + 1
                end
            end
        end
        before = row
    end
    if best == 0 then
        return 0
    end
    return best
        + shared_letters(a, a_from, best_a - 1, b, b_from, best_b - 1)
        + shared_letters(a, best_a + best, a_to, b, best_b + best, b_to)
end

-- The member of `known` that is most like `word`, or nil.
local function near_match(word, known)
    if #word > MAX_NEAR_CHARS or #known > MAX_NEAR_NAMES then
        return nil
    end
    local folded = word:lower():gsub("_", "-")
    local best, best_ratio, best_folded = nil, LIKENESS, ""
    for _, name in ipairs(known) do
        local other = name:lower():gsub("_", "-")
        local both = #folded + #other
        if both > 0 and 2 * math.min(#folded, #other) / both >= best_ratio then
            local ratio = 2 * shared_letters(other, 1, #other, folded, 1, #folded) / both
            local is_tie = ratio == best_ratio and (other > best_folded or (other == best_folded and name > best))
            if ratio > best_ratio or is_tie then
                best, best_ratio, best_folded = name, ratio, other
            end
        end
    end
    return best
end

local function not_known(unknown, names)
    local words = {}
    for index, text in ipairs(unknown) do
        local near = near_match(text, names)
        words[index] = printable(text) .. (near and " (did you mean " .. printable(near) .. "?)" or "")
    end
    local sentence = (#unknown == 1 and "unknown QPU: " or "unknown QPUs: ") .. table.concat(words, ", ")
    if #names == 0 then
        return sentence
    end
    local listed = {}
    for index = 1, math.min(#names, MAX_NAMES) do
        listed[index] = names[index]
    end
    local more = #names > MAX_NAMES and string.format(", ... and %d more", #names - MAX_NAMES) or ""
    return sentence .. "; known QPUs: " .. printables(listed) .. more
end

-- --- the catalogue -----------------------------------------------------------------------------------------

-- The folder of the script that Slurm has loaded, which is that of slurm.conf: src/common/read_config.c,
-- get_extra_conf_path(). Asked while that script requires this module; a function called later may be a tail call.
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

-- Run a text as data: no function is within its reach. Lua 5.1 has no load() of a text, the others no setfenv().
local function values_of(text, name)
    if text:byte(1) == 27 then
        return nil, "is compiled Lua"
    end
    local chunk, problem
    if setfenv then -- luacheck: ignore
        chunk, problem = loadstring(text, name) -- luacheck: ignore
        if chunk then
            setfenv(chunk, {}) -- luacheck: ignore
        end
    else
        chunk, problem = load(text, name, "t", {})
    end
    if not chunk then
        return nil, "is not Lua: " .. tostring(problem)
    end
    local is_run, value = pcall(chunk)
    if not is_run then
        return nil, "cannot be evaluated: " .. tostring(value)
    end
    return value
end

local function is_list_of_strings(value)
    if type(value) ~= "table" then
        return false
    end
    for _, text in ipairs(value) do
        if type(text) ~= "string" then
            return false
        end
    end
    return true
end

local function is_rules(allow)
    if type(allow) ~= "table" then
        return false
    end
    for rule, values in pairs(allow) do
        if rule == "groups" then
            if type(values) ~= "table" then
                return false
            end
            for _, group in ipairs(values) do
                local is_group = type(group) == "table" and type(group.name) == "string"
                if not is_group or (group.members ~= nil and not is_list_of_strings(group.members)) then
                    return false
                end
            end
        elseif rule ~= "users" and rule ~= "accounts" and rule ~= "partitions" and rule ~= "qos" then
            return false -- a rule of a later version: to pass it over would let everybody in
        elseif not is_list_of_strings(values) then
            return false
        end
    end
    return true
end

local function is_qpu(qpu)
    return type(qpu) == "table"
        and type(qpu.name) == "string"
        and is_list_of_strings(qpu.types)
        and (qpu.license == nil or type(qpu.license) == "string")
        and type(qpu.capacity) == "number"
        and (qpu.allow == nil or is_rules(qpu.allow))
        and (qpu.notice == nil or type(qpu.notice) == "string")
end

-- What the QPUs are found by: their names, and their licenses.
local function index_of(qpus)
    local found = { qpus = qpus, names = {}, by_name = {}, by_license = {} }
    for index, qpu in ipairs(qpus) do
        found.names[index] = qpu.name
        found.by_name[qpu.name] = qpu
        found.has_dynamic = found.has_dynamic or qpu.dynamic
        if qpu.license then
            local shared = found.by_license[qpu.license] or { count = qpu.capacity, names = {} }
            shared.count = math.min(shared.count, qpu.capacity)
            shared.names[#shared.names + 1] = qpu.name
            found.by_license[qpu.license] = shared
        end
    end
    return found
end

-- The catalogue as it is now; nil and why, where there is none that can be used.
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
    if cache.path == path and cache.text == text then
        return cache.catalogue
    end
    local value, fault = values_of(text, "=" .. CATALOGUE_FILE)
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
    cache = { path = path, text = text, catalogue = index_of(value.qpus) }
    return cache.catalogue
end

-- --- the selection -----------------------------------------------------------------------------------------

-- The value of --qpu as Prolog will see it, or nil where the job has none.
--
-- slurmd puts SPANK_ before each name that does not begin with it (src/common/slurm_protocol_defs.c,
-- valid_spank_job_env()), and where a name stands twice, the last value counts (src/common/env.c, env_array_merge()),
-- or an earlier one where that is too long. Our plugin sets it once; who writes it otherwise is refused.
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

local function trimmed(text)
    return (text:gsub("^[ \t]+", ""):gsub("[ \t]+$", ""))
end

-- The terms of a selection: each name once, a choice as often as it is there.
local function terms_of(text)
    local terms, seen = {}, {}
    for part in (text .. ","):gmatch("([^,]*),") do
        local word = trimmed(part)
        if word == "" then
            refuse("--qpu=" .. printable(text) .. ": a name is empty; write --qpu=NAME or --qpu=NAME,NAME")
        end
        local term = { text = word, pattern = word }
        for _, prefix in ipairs({ ANY, LEAST_BUSY }) do
            if word:sub(1, #prefix) == prefix and word ~= prefix then
                term.prefix, term.pattern = prefix, trimmed(word:sub(#prefix + 1))
            end
        end
        term.is_choice = term.prefix ~= nil or term.pattern:find("[*?%[]") ~= nil
        if term.is_choice or not seen[word] then
            terms[#terms + 1] = term
        end
        seen[word] = true
    end
    return terms
end

-- A character as a number that grows with its code point.
local function code_of(char)
    local code = 0
    for index = 1, #char do
        code = code * 256 + char:byte(index)
    end
    return code
end

-- Read `[...]` of a pattern, from the bracket on: a test of one character, and where it goes on; nil where no `]` is.
local function class_at(pattern, from)
    local start = from + 1
    local is_negated = pattern[start] == "!"
    if is_negated then
        start = start + 1
    end
    local stop = start
    if pattern[stop] == "]" then
        stop = stop + 1
    end
    while pattern[stop] and pattern[stop] ~= "]" do
        stop = stop + 1
    end
    if not pattern[stop] then
        return nil
    end
    local ranges = {}
    local index = start
    while index < stop do
        local is_range = pattern[index + 1] == "-" and index + 2 < stop
        local last = is_range and index + 2 or index
        ranges[#ranges + 1] = { code_of(pattern[index]), code_of(pattern[last]) }
        index = last + 1
    end
    return function(char)
        local code = code_of(char)
        for _, range in ipairs(ranges) do
            if range[1] <= code and code <= range[2] then
                return not is_negated
            end
        end
        return is_negated
    end, stop + 1
end

-- The steps of a pattern, as Python's fnmatch reads it: "*", or a test of one character.
local function steps_of(pattern)
    local chars = characters(pattern)
    local steps = {}
    local index = 1
    while index <= #chars do
        local char = chars[index]
        local test, following
        if char == "[" then
            test, following = class_at(chars, index)
        end
        if char == "*" then
            test = "*"
        elseif char == "?" then
            test = function()
                return true
            end
        elseif not test then
            test = function(other)
                return other == char
            end
        end
        steps[#steps + 1] = test
        index = following or index + 1
    end
    return steps
end

-- Whether a name's characters fit a pattern's steps; a star that took too little takes one more.
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

-- A type's name reduced to what its spellings share.
local function canonical(type_name)
    return (type_name:lower():gsub("[^%w\128-\255]", ""))
end

-- Whether a word names one of a QPU's types, with or without the vendor that QRMI's classes have in front.
local function is_type(word, types)
    local wanted = canonical(word)
    for _, name in ipairs(types) do
        if wanted == canonical(name) or wanted == "ibm" .. canonical(name) then
            return true
        end
    end
    return false
end

-- The QPUs that a term may come to, whoever asks.
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

local SINGULAR = { users = "user", groups = "group", accounts = "account", partitions = "partition", qos = "QOS" }

local function listed(rule, names)
    if not names or #names == 0 then
        return nil
    end
    local word = (#names == 1 or rule == "qos") and SINGULAR[rule] or rule
    return word .. " " .. printables(names)
end

local function contains(list, value)
    for _, item in ipairs(list) do
        if item == value then
            return true
        end
    end
    return false
end

local function names_of(groups)
    local names = {}
    for index, group in ipairs(groups or {}) do
        names[index] = group.name
    end
    return names
end

-- Whether a person is in one of the groups; nil where that cannot be told: a directory that gives no member lists.
local function is_in(groups, person)
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

-- Why a person may not use a QPU; nil where he may, or where only Prolog can tell.
--
-- Of a person, nil is not known, false is none: user, gid, account, qos; partitions is a list.
local function access_fault(qpu, person)
    local allow = qpu.allow
    if not allow then
        return nil
    end
    local function denial(subject, allowed)
        local whom = allowed and "it is for " .. allowed or "nobody may"
        return subject .. " may not use " .. printable(qpu.name) .. ": " .. whom
    end
    if (allow.users or allow.groups) and person.user then
        local is_named = contains(allow.users or {}, person.user)
        if not is_named and is_in(allow.groups or {}, person) == false then
            local whom = { listed("users", allow.users) }
            whom[#whom + 1] = listed("groups", names_of(allow.groups))
            return denial("user " .. printable(person.user), #whom > 0 and table.concat(whom, " or ") or nil)
        end
    end
    local account, qos = { person.account }, { person.qos }
    for _, test in ipairs({
        { "partitions", "", person.partitions or {} },
        { "accounts", "a job without an account", account },
        { "qos", "a job without a QOS", qos },
    }) do
        local rule, without, values = test[1], test[2], test[3]
        for _, value in ipairs(values) do
            if allow[rule] and not contains(allow[rule], value) then
                local subject = value and SINGULAR[rule] .. " " .. printable(value) or without
                return denial(subject, listed(rule, allow[rule]))
            end
        end
    end
    return nil
end

-- The first that is a text with something in it.
local function given(...)
    for index = 1, select("#", ...) do
        local value = select(index, ...)
        if type(value) == "string" and value ~= "" then
            return value
        end
    end
    return nil
end

-- The partitions that a job may start in: those it names, or the default one; none where only slurmctld knows, since
-- the job names a reservation, whose own it is then (src/slurmctld/job_mgr.c, _get_job_parts()). slurm.reservations is
-- not asked: it holds pointers to reservations that may be gone.
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

-- Who asks, by what the job's owner asked for and what the job has already (nil where it is new).
local function person_of(job_desc, job_rec, part_list)
    local had = job_rec or {}
    -- "" asks for the default one.
    local account = given(job_desc.account ~= "" and (job_desc.account or had.account), job_desc.default_account)
    local qos = given(job_desc.qos ~= "" and (job_desc.qos or had.qos), job_desc.default_qos)
    local user = given(job_desc.user_name, had.user_name) or string.format("%d", had.user_id or job_desc.user_id)
    local partition = given(job_desc.partition, had.partition)
    local no_qos = nil -- where the association names none, Slurm may find one
    if not account then
        no_qos = false -- there is no accounting
    end
    return {
        user = user,
        gid = had.group_id or job_desc.group_id,
        partitions = partitions_of(partition, given(job_desc.reservation) ~= nil, part_list),
        account = account and account:lower() or false,
        qos = qos and qos:lower() or no_qos,
    }
end

-- --- what a job gets ---------------------------------------------------------------------------------------

-- Give each slot one of its candidates, none to two of them; return the slot for which none is left, or nil. What QRMI
-- finds behind a dynamic entry is several QPUs: that may serve all.
local function assign(slots)
    local holder = {}
    local function place(slot, seen)
        for _, candidate in ipairs(slot.candidates) do
            if not seen[candidate] then
                seen[candidate] = true
                if candidate.dynamic or not holder[candidate] or place(holder[candidate], seen) then
                    holder[candidate] = slot
                    slot.chosen = candidate
                    return true
                end
            end
        end
        return false
    end
    for _, slot in ipairs(slots) do
        if not place(slot, {}) then
            return slot
        end
    end
    return nil
end

-- The licenses of a slot's candidates, each once; nil where one of them has none, so that the slot needs none.
local function licenses_of(candidates)
    local found, seen = {}, {}
    for _, qpu in ipairs(candidates) do
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

local function none_left(slot)
    return printable(slot.term.text) .. ": no other QPU is left for it"
end

-- What a selection comes to for a person: its named QPUs, and a slot for each choice with what it may become.
--
-- Refuses what is not known, what he may not use, and a choice that has nothing left.
local function resolve(text, catalogue, person)
    local named, choices, unknown, faults, is_named = {}, {}, {}, {}, {}
    local terms = terms_of(text)
    for _, term in ipairs(terms) do
        local found = fitting(term, catalogue)
        if #found == 0 then
            unknown[#unknown + 1] = term.text
        elseif catalogue.by_name[term.text] then
            is_named[found[1]] = not found[1].dynamic
            faults[#faults + 1] = access_fault(found[1], person)
            named[#named + 1] = found[1]
        else
            choices[#choices + 1] = { term = term, fitting = found }
        end
    end
    if #unknown > 0 then
        refuse(not_known(unknown, catalogue.names))
    end
    if #terms > #catalogue.qpus and not catalogue.has_dynamic then
        refuse(none_left({ term = terms[#terms] }))
    end
    for _, slot in ipairs(choices) do
        local reasons = {}
        slot.candidates = {}
        for _, qpu in ipairs(slot.fitting) do
            local fault = access_fault(qpu, person)
            if fault then
                reasons[#reasons + 1] = fault
            elseif not is_named[qpu] then
                slot.candidates[#slot.candidates + 1] = qpu
            end
        end
        if #slot.candidates == 0 then
            if #reasons == 0 then
                reasons[1] = none_left(slot)
            end
            faults[#faults + 1] = table.concat(reasons, "; ", 1, math.min(#reasons, MAX_NAMES))
        end
    end
    if #faults > 0 then
        refuse(table.concat(faults, "; "), slurm.ESLURM_ACCESS_DENIED)
    end
    return named, choices
end

-- Put a slot's candidates into the order in which this job tries them: those in service first, and of these another
-- one first than the job before.
local function take_turns(slot)
    local in_service, out = {}, {}
    local count = #slot.candidates
    for index = 0, count - 1 do
        local qpu = slot.candidates[(turn + index) % count + 1]
        local list = qpu.notice and out or in_service
        list[#list + 1] = qpu
    end
    for _, qpu in ipairs(out) do
        in_service[#in_service + 1] = qpu
    end
    slot.candidates = in_service
end

-- --- licenses ----------------------------------------------------------------------------------------------

-- How many of each license, in the order in which they came.
local function new_counts()
    return { names = {}, count = {} }
end

local function add(counts, license)
    if not counts.count[license] then
        counts.names[#counts.names + 1] = license
    end
    counts.count[license] = (counts.count[license] or 0) + 1
end

-- Split what is asked of licenses into the QPUs' and the others': `a:2,b;c=1(n1)`, src/slurmctld/licenses.c,
-- _build_license_list(); newer Slurm has `a|b` as well.
local function split_licenses(text, catalogue)
    local others, ours, rest = {}, {}, text
    for word in text:gmatch("[^,;|]+") do
        local name = trimmed(word:match("^[^:=(]*"))
        if catalogue.by_license[name] then
            ours[#ours + 1] = name
        else
            others[#others + 1] = word
        end
    end
    if #ours > 0 then
        rest = table.concat(others, text:find("|", 1, true) and "|" or ",")
    end
    return rest, ours
end

-- What is asked of other licenses, with those that the job needs for its QPUs.
local function joined(rest, needed, catalogue)
    local words = {}
    if rest ~= "" then
        words[1] = rest
    end
    for _, license in ipairs(needed.names) do
        local shared, count = catalogue.by_license[license], needed.count[license]
        if shared and count > shared.count then
            local why = "--qpu needs %d of the license %s (for %s), more than its capacity of %d"
            local sentence = string.format(why, count, license, printables(shared.names), shared.count)
            refuse(sentence, slurm.ESLURM_INVALID_LICENSES)
        end
        words[#words + 1] = string.format("%s:%d", license, count)
    end
    if rest:find("|", 1, true) and #needed.names > 0 then
        local why = "--licenses with | cannot be combined with --qpu: Slurm has no list that mixes OR and AND"
        refuse(why, slurm.ESLURM_INVALID_LICENSES)
    end
    local text = table.concat(words, ",")
    if #text > MAX_LICENSES_BYTES then
        refuse("--qpu needs more licenses than Slurm accepts in one job", slurm.ESLURM_INVALID_LICENSES)
    end
    return text
end

local function hand_made(license, catalogue)
    local names = catalogue.by_license[license].names
    local why = "%s is the license of %s: ask for it with --qpu=%s, not with --licenses"
    return string.format(why, license, printables(names), printable(names[1]))
end

-- --- AdminComment ------------------------------------------------------------------------------------------

-- A comment's other words as they are, and the markers in it.
local function split_comment(text)
    local markers = {}
    local rest = (" " .. text):gsub(" qrmi%-slurm:any=(%S*)", function(set)
        markers[#markers + 1] = set
        return ""
    end)
    return rest:sub(1, 1) == " " and rest:sub(2) or rest, markers
end

local function with_markers(rest, markers)
    local words = {}
    if rest ~= "" then
        words[1] = rest
    end
    for _, set in ipairs(markers) do
        words[#words + 1] = MARKER .. set
    end
    return table.concat(words, " ")
end

-- --- job_submit --------------------------------------------------------------------------------------------

local function tell_of_notice(qpu)
    local sentence = "%s is out of service (%s); the job waits until it is back"
    slurm.log_user("%s", "qrmi-slurm: " .. string.format(sentence, printable(qpu.name), printable(qpu.notice)))
end

local function usable_catalogue()
    local catalogue, fault = read_catalogue()
    if not catalogue then
        give_up(fault)
    end
    return catalogue
end

-- Whether this is another than the first component of a heterogeneous job, in a Slurm that refuses licenses there: from
-- 23.02 on (src/slurmctld/proc_req.c), which has all of its error codes for Lua as well. NO_VAL is that of other jobs.
local function is_further_component(job_desc)
    local offset = job_desc.het_job_offset or 0
    return slurm.ESLURM_NOT_HET_JOB ~= nil and offset > 0 and offset < MAX_COMPONENTS
end

local function submit(job_desc, part_list, text)
    local catalogue = usable_catalogue()
    local named, choices = resolve(text, catalogue, person_of(job_desc, nil, part_list))
    for _, slot in ipairs(choices) do
        slot.licenses = licenses_of(slot.candidates)
        take_turns(slot)
    end
    local left_out = assign(choices)
    if left_out then
        refuse(none_left(left_out))
    end
    local needed, markers, waiting = new_counts(), {}, {}
    for _, qpu in ipairs(named) do
        if qpu.license then
            add(needed, qpu.license)
        end
        waiting[#waiting + 1] = qpu
    end
    for _, slot in ipairs(choices) do
        turn = turn + 1
        if slot.licenses then
            add(needed, slot.chosen.license)
            if #slot.licenses > 1 then
                markers[#markers + 1] = table.concat(slot.licenses, "|")
            end
        end
        waiting[#waiting + 1] = slot.chosen
    end
    local rest, ours = split_licenses(job_desc.licenses or "", catalogue)
    for _, license in ipairs(ours) do
        if not needed.count[license] then
            refuse(hand_made(license, catalogue))
        end
    end
    local licenses = joined(rest, needed, catalogue)
    if #needed.names > 0 and is_further_component(job_desc) then
        local sentence = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=%s there"
        refuse(string.format(sentence, printable(text)))
    end
    if licenses ~= (job_desc.licenses or "") then
        job_desc.licenses = licenses
    end
    local comment = job_desc.admin_comment or ""
    local marked = with_markers((split_comment(comment)), markers)
    if marked ~= comment then
        job_desc.admin_comment = marked
    end
    for _, qpu in ipairs(waiting) do
        if qpu.notice then
            tell_of_notice(qpu)
        end
    end
end

-- A QPU's license that is asked for by hand would keep jobs with --qpu waiting for a QPU that nobody uses.
local function refuse_hand_made(job_desc)
    local catalogue = read_catalogue()
    if catalogue then
        local _, ours = split_licenses(job_desc.licenses, catalogue)
        if #ours > 0 then
            refuse(hand_made(ours[1], catalogue))
        end
    end
end

-- Do some work, and tell Slurm how it went. An error in Lua lets the job through in Slurm up to 25.05
-- (src/plugins/job_submit/lua/job_submit_lua.c), without its licenses; hence none gets there.
--
-- work: a function; it says by asked(true) that the job has --qpu, from where on a fault of ours refuses the job.
-- codes: whether Slurm's own numbers may be returned, whose words scontrol prints.
local function guarded(work, codes)
    local has_qpu = false
    local is_done, problem = pcall(work, function()
        has_qpu = true
    end)
    if is_done then
        return slurm.SUCCESS
    end
    if type(problem) == "table" and problem.refusal then
        slurm.log_user("%s", "qrmi-slurm: " .. problem.refusal)
        return codes and problem.code or slurm.ERROR
    end
    local is_ours = type(problem) == "table" and problem.fault
    local reason = is_ours and is_ours .. "; run: qrmi-slurm catalogue" or "internal error: " .. tostring(problem)
    slurm.log_error("%s", "qrmi-slurm: " .. reason)
    if not has_qpu then
        return slurm.SUCCESS
    end
    slurm.log_user("%s", "qrmi-slurm: the site's list of QPUs cannot be used; please tell an admin")
    return slurm.ERROR
end

--- Add to a new job the licenses of its QPUs; refuse what it cannot have.
-- Call it last in slurm_job_submit(): what is changed after it is not looked at.
-- @param job_desc as slurm_job_submit() has got it
-- @param part_list likewise
-- @param submit_uid likewise
-- @return slurm.SUCCESS or slurm.ERROR
function M.job_submit(job_desc, part_list, submit_uid) -- luacheck: no unused args
    return guarded(function(asked)
        local text = selection_of(job_desc.spank_job_env)
        if text then
            asked()
            submit(job_desc, part_list, text)
        elseif job_desc.licenses then
            refuse_hand_made(job_desc)
        end
    end)
end

-- --- job_modify --------------------------------------------------------------------------------------------

-- Order the licenses that a choice may come to: those that are asked for now, those that the job has, the others.
local function ordered(set, asked, had)
    local found, seen = {}, {}
    for _, list in ipairs({ asked, had, set }) do
        for _, license in ipairs(list) do
            if not seen[license] and contains(set, license) then
                found[#found + 1] = license
                seen[license] = true
            end
        end
    end
    return found
end

-- The licenses that a waiting job needs for its QPUs after a change; its choices keep theirs, unless another of the
-- same choice is asked for, or the owner may not use those QPUs any more.
local function needed_after(named, choices, markers, asked, had)
    local needed, slots, usable = new_counts(), {}, {}
    for _, qpu in ipairs(named) do
        if qpu.license then
            add(needed, qpu.license)
        end
    end
    for _, slot in ipairs(choices) do
        local set = licenses_of(slot.fitting) -- as at submission, whatever the owner may use now
        if set and #set == 1 then
            add(needed, set[1])
        end
        for _, qpu in ipairs(slot.candidates) do
            usable[qpu.license or ""] = true
        end
    end
    for _, text in ipairs(markers) do
        local set, allowed = {}, {}
        for license in text:gmatch("[^|]+") do
            set[#set + 1] = license
            allowed[#allowed + 1] = usable[license] and license or nil
        end
        slots[#slots + 1] = { candidates = ordered(#allowed > 0 and allowed or set, asked, had) }
    end
    assign(slots)
    for _, slot in ipairs(slots) do
        add(needed, slot.chosen or slot.candidates[1])
    end
    return needed
end

local function is_pending(job_rec)
    return (job_rec.job_state or 0) % JOB_STATE_BASE == JOB_PENDING
end

-- One text serves all jobs of a change (src/slurmctld/job_mgr.c, update_job_str()): what was added for a component of a
-- heterogeneous job stands there for the next. So what is not this job's is taken out, not refused.
local function modify_without_qpu(job_desc, job_rec)
    local catalogue = read_catalogue()
    if not catalogue or not is_pending(job_rec) then
        return
    end
    local rest, ours = split_licenses(job_desc.licenses, catalogue)
    if #ours == 0 then
        return
    end
    if rest == "" and (job_rec.het_job_id or 0) == 0 then
        refuse(hand_made(ours[1], catalogue), slurm.ESLURM_INVALID_LICENSES)
    end
    job_desc.licenses = rest -- "" leaves the job's licenses as they are
end

local function modify_waiting(job_desc, job_rec, part_list, text)
    local has_new_access = job_desc.account ~= nil or job_desc.partition ~= nil or job_desc.qos ~= nil
    if not has_new_access and job_desc.licenses == nil then
        return
    end
    local catalogue = usable_catalogue()
    -- Whether he may use the QPUs is asked again only where that can have changed.
    local person = has_new_access and person_of(job_desc, job_rec, part_list) or {}
    local named, choices = resolve(text, catalogue, person)
    local had_rest, had = split_licenses(job_rec.licenses or "", catalogue)
    local rest, asked = had_rest, {}
    if job_desc.licenses ~= nil then
        rest, asked = split_licenses(job_desc.licenses, catalogue)
    end
    local _, markers = split_comment(job_rec.admin_comment or "")
    local licenses = joined(rest, needed_after(named, choices, markers, asked, had), catalogue)
    if licenses ~= (job_desc.licenses or job_rec.licenses or "") then
        job_desc.licenses = licenses
    end
end

-- Slurm lets a user drop a running job's licenses, and the next job would start beside it on the same QPU.
local function modify_running(job_desc, job_rec, submit_uid)
    if job_desc.licenses == nil or submit_uid ~= job_rec.user_id or submit_uid == 0 then
        return
    end
    local catalogue = usable_catalogue()
    local _, had = split_licenses(job_rec.licenses or "", catalogue)
    if #had > 0 and job_desc.licenses ~= job_rec.licenses then
        refuse("a running job keeps the licenses of its QPUs", slurm.ESLURM_INVALID_LICENSES)
    end
end

-- The markers stay where an admin writes a comment, and none comes from elsewhere.
local function keep_markers(job_desc, job_rec)
    local comment = job_desc.admin_comment
    local _, markers = split_comment(job_rec.admin_comment or "")
    local marked = with_markers((split_comment(comment)), markers)
    if marked ~= comment then
        job_desc.admin_comment = marked
    end
end

--- Keep the licenses of a job's QPUs right while it is changed.
-- Call it last in slurm_job_modify().
-- @param job_desc as slurm_job_modify() has got it
-- @param job_rec likewise
-- @param part_list likewise
-- @param submit_uid likewise
-- @return slurm.SUCCESS, slurm.ERROR, slurm.ESLURM_ACCESS_DENIED or slurm.ESLURM_INVALID_LICENSES
function M.job_modify(job_desc, job_rec, part_list, submit_uid)
    return guarded(function(asked)
        if job_desc.admin_comment ~= nil then
            keep_markers(job_desc, job_rec)
        end
        local text = selection_of(job_rec.spank_job_env)
        if not text then
            if job_desc.licenses ~= nil then
                modify_without_qpu(job_desc, job_rec)
            end
            return
        end
        asked()
        if is_pending(job_rec) then
            modify_waiting(job_desc, job_rec, part_list, text)
        else
            modify_running(job_desc, job_rec, submit_uid)
        end
    end, true)
end

-- --- cli_filter --------------------------------------------------------------------------------------------

-- What the command line says of who asks; the rest is slurmctld's to know.
local function person_of_options(options)
    local account, qos = given(options.account), given(options.qos)
    return {
        partitions = partitions_of(given(options.partition)),
        account = account and account:lower(),
        qos = qos and qos:lower(),
    }
end

--- Refuse on the login node what slurmctld would refuse.
-- Where the node has no catalogue, nothing is said.
-- @param options as slurm_cli_pre_submit() has got it
-- @return slurm.SUCCESS or slurm.ERROR
function M.cli_pre_submit(options)
    local _, problem = pcall(function()
        local plugins = options.spank
        local text = type(plugins) == "table" and type(plugins.spank_qrmi) == "table" and plugins.spank_qrmi.qpu
        -- A step chooses among what its job holds, and TaskProlog says what is wrong with that.
        local jobid = given(options.jobid) or "" -- "unset" where there is none
        local is_step = options.type == "srun" and (os.getenv("SLURM_JOB_ID") or jobid:match("^%d+"))
        local catalogue = text and not is_step and read_catalogue()
        if catalogue then
            local _, choices = resolve(text, catalogue, person_of_options(options))
            local left_out = assign(choices)
            if left_out then
                refuse(none_left(left_out))
            end
        end
    end)
    if type(problem) == "table" and problem.refusal then
        slurm.log_error("%s", "qrmi-slurm: " .. problem.refusal)
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

return M
