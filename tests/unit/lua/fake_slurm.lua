-- A fake of what Slurm's Lua plugins give a script (src/lua/slurm_lua.c and src/plugins/job_submit/lua of 22.05). The
-- outcome of each call is printed as a line of JSON.
local unpack = table.unpack or unpack -- luacheck: ignore

slurm = { SUCCESS = 0, ERROR = -1, FAILURE = -1, ESLURM_ACCESS_DENIED = 2002, ESLURM_INVALID_LICENSES = 2048 }
local said

local function note(list)
    return function(...)
        local text = string.format(unpack({ ... }))
        said[list][#said[list] + 1] = text
    end
end

slurm.log_user = note("user")
slurm.log_error = note("log")
slurm.log_info = note("log")

local NUMBERS = { group_id = true, user_id = true }

-- A job_desc: unset fields are nil, setting a string to "" unsets it, and only strings and numbers can be set.
local function job_desc(values)
    return setmetatable({}, {
        __index = function(_, name)
            return values[name]
        end,
        __newindex = function(_, name, value)
            assert(NUMBERS[name] and type(value) == "number" or type(value) == "string", name)
            values[name] = value ~= "" and value or nil
        end,
    })
end

local function job_rec(values)
    return setmetatable({}, {
        __index = function(_, name)
            return values[name]
        end,
        __newindex = function(_, name)
            error("a job's record is read-only: " .. name)
        end,
    })
end

local function quoted(text)
    return '"' .. text:gsub('[%c"\\]', function(char)
        return string.format("\\u%04x", char:byte())
    end) .. '"'
end

local function json(value)
    if type(value) == "string" then
        return quoted(value)
    elseif type(value) == "number" then
        return string.format("%d", value)
    elseif type(value) ~= "table" then
        return value == nil and "null" or tostring(value)
    end
    local words = {}
    if #value > 0 or next(value) == nil then
        for index, item in ipairs(value) do
            words[index] = json(item)
        end
        return "[" .. table.concat(words, ",") .. "]"
    end
    for key, item in pairs(value) do
        words[#words + 1] = quoted(tostring(key)) .. ":" .. json(item)
    end
    return "{" .. table.concat(words, ",") .. "}"
end

-- What the last call cost: instructions of Lua's virtual machine, bytes that string functions searched, and microseconds.
local cost = { instructions = 0, searched = 0, microseconds = 0 }
local EVERY = 100
local search = { find = string.find, match = string.match, gsub = string.gsub, gmatch = string.gmatch }

local function count_instructions()
    cost.instructions = cost.instructions + EVERY
end

-- Count what string functions search from now on. They run outside of the virtual machine.
function count_searches()
    for name in pairs({ find = true, match = true }) do
        string[name] = function(text, pattern, init, ...)
            local first = init or 1
            local _, last = search.find(text, pattern, first, name == "find" and ...)
            cost.searched = cost.searched + (last or #text) - first + 1
            return search[name](text, pattern, init, ...)
        end
    end
    for name in pairs({ gsub = true, gmatch = true }) do
        string[name] = function(text, ...)
            cost.searched = cost.searched + #text
            return search[name](text, ...)
        end
    end
end

-- Call a function as Slurm does, and print its return value, its messages, the job's fields afterwards and its cost.
local function report(values, work)
    said = { user = {}, log = {} }
    cost = { instructions = 0, searched = 0, microseconds = 0 }
    local desc, began = job_desc(values), os.clock()
    debug.sethook(count_instructions, "", EVERY)
    local code = work(desc)
    debug.sethook()
    local spent = cost
    spent.microseconds = math.floor((os.clock() - began) * 1000000)
    cost = { instructions = 0, searched = 0 }
    local job = next(values) and values or { none = true }
    print(json({ code = code, user = said.user, log = said.log, job = job, cost = spent }))
end

function submit(qrmi, values, parts)
    report(values, function(desc)
        return qrmi.job_submit(desc, parts or {}, values.user_id or 1000)
    end)
end

function modify(qrmi, values, had, parts, uid)
    report(values, function(desc)
        return qrmi.job_modify(desc, job_rec(had), parts or {}, uid or had.user_id)
    end)
end

function cli(qrmi, options)
    report({}, function()
        return qrmi.cli_pre_submit(options)
    end)
end
