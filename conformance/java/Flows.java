import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.codenotary.immudb4j.FileRootHolder;
import io.codenotary.immudb4j.ImmuClient;
import io.codenotary.immudb4j.KVList;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Predicate;

/**
 * The flows of the official Java SDK (artifact immudb4j, nothing of it is changed). conformance/run.py says which one, and judges.
 *
 * <p>The only version that Maven Central has, 0.1.8, is of 2020 and speaks a schema from before 1.0: its logins and databases are those
 * of today, its calls of keys are not. What a server must do with those is refuse them, and write nothing.
 */
public final class Flows {
    /** The SDK gives its calls no deadline; longer than what the server takes for the calls of a flow that cannot be done. */
    private static final int FLOW_S = 120;

    /** One request of run.py. */
    private static final class Asked {
        String flow;
        String endpoint;
        String space;
        String tag;
        String username;
        String password;
        String database;
        String state;
    }

    /** An answer that no server should give. */
    private static final class Wrong extends RuntimeException {
        Wrong(String text) {
            super(text);
        }
    }

    /** A refusal that should have been another one, unless there was no answer at all: run.py decides. */
    private static final class Otherwise extends RuntimeException {
        Otherwise(String expected, StatusRuntimeException found) {
            super(expected, found);
        }
    }

    private interface Flow {
        void run(Asked asked, ImmuClient db) throws Exception;
    }

    private interface Call {
        void run() throws Exception;
    }

    private static final Map<String, Flow> FLOWS = new LinkedHashMap<>();

    static {
        FLOWS.put("tokens", Flows::tokens);
        FLOWS.put("administration", Flows::administration);
        FLOWS.put("calls_of_an_older_schema", Flows::callsOfAnOlderSchema);
    }

    /** The connections of the flow that runs. */
    private static final List<ImmuClient> open = new ArrayList<>();

    private Flows() {}

    private static void same(Object found, Object expected, String what) {
        if (!expected.equals(found)) {
            throw new Wrong(what + ": " + found + " instead of " + expected);
        }
    }

    private static String textOf(StatusRuntimeException error) {
        return error.getStatus().getDescription() == null ? "" : error.getStatus().getDescription();
    }

    /** The call must be refused with this code, and a text as wanted. */
    private static void refused(Call call, Status.Code code, Predicate<String> text, String what) throws Exception {
        try {
            call.run();
        } catch (StatusRuntimeException error) {
            String found = textOf(error);
            if (error.getStatus().getCode() == code && text.test(found)) {
                return;
            }
            throw new Otherwise(code + " of " + what, error);
        }
        throw new Wrong(what + ": not refused");
    }

    private static void refused(Call call, Status.Code code, String text, String what) throws Exception {
        refused(call, code, text::equals, what);
    }

    private static ImmuClient connect(Asked asked) throws Exception {
        int colon = asked.endpoint.lastIndexOf(':');
        ImmuClient db = ImmuClient.newBuilder()
                .setServerUrl(asked.endpoint.substring(0, colon))
                .setServerPort(Integer.parseInt(asked.endpoint.substring(colon + 1)))
                .setWithAuthToken(true)
                .setRootHolder(FileRootHolder.newBuilder().setRootsFolder(asked.state).build())
                .build();
        open.add(db);
        return db;
    }

    private static void tokens(Asked asked, ImmuClient db) throws Exception {
        byte[] key = (asked.space + "absent").getBytes(StandardCharsets.UTF_8);
        refused(() -> db.rawGet(key), Status.Code.UNKNOWN, "tbtree: key not found", "a key that is not there");
        ImmuClient other = connect(asked);
        refused(() -> other.rawGet(key), Status.Code.UNKNOWN, "not logged in", "a call without a login");
        refused(() -> other.login(asked.username, "wrong"), Status.Code.UNKNOWN, "invalid user name or password", "a wrong password");
        refused(() -> other.login("absent" + asked.tag, "wrong"), Status.Code.UNKNOWN, "invalid user name or password", "a wrong user");
        other.login(asked.username, asked.password);
        other.useDatabase(asked.database);
        refused(() -> other.rawGet(key), Status.Code.UNKNOWN, "tbtree: key not found", "a key that is not there, of another login");
    }

    private static void administration(Asked asked, ImmuClient db) throws Exception {
        String name = "j" + asked.tag;
        same(db.databases().contains(name), false, "a database that is not there yet");
        db.createDatabase(name);
        same(db.databases().containsAll(List.of(name, asked.database)), true, "databases");
        refused(() -> db.createDatabase(name), Status.Code.UNKNOWN, "database already exists", "createDatabase twice");
        refused(() -> db.createDatabase("a b"), Status.Code.UNKNOWN, "unrecognized character in database name", "a wrong name");
        db.useDatabase(name);
        refused(() -> db.useDatabase("absent" + asked.tag), Status.Code.NOT_FOUND, "'absent" + asked.tag + "' does not exist",
                "useDatabase of none");
        db.useDatabase(asked.database);
    }

    private static void callsOfAnOlderSchema(Asked asked, ImmuClient db) throws Exception {
        String key = asked.space + "key";
        byte[] value = "value".getBytes(StandardCharsets.UTF_8);
        Predicate<String> undecodable = text -> text.startsWith("failed to decode Protobuf message");
        refused(() -> db.set(key, value), Status.Code.INTERNAL, undecodable, "set");
        refused(() -> db.rawSet(key, value), Status.Code.INTERNAL, undecodable, "rawSet");
        Map<String, Call> gone = new LinkedHashMap<>();
        gone.put("safeSet", () -> db.safeSet(key, value));
        gone.put("safeRawSet", () -> db.safeRawSet(key, value));
        gone.put("safeGet", () -> db.safeGet(key));
        gone.put("setAll", () -> db.setAll(KVList.newBuilder().add(key, value).build()));
        gone.put("rawSetAll", () -> db.rawSetAll(KVList.newBuilder().add(key, value).build()));
        gone.put("getAll", () -> db.getAll(List.of(key)));
        gone.put("root", db::root);
        for (Map.Entry<String, Call> call : gone.entrySet()) {
            refused(call.getValue(), Status.Code.UNIMPLEMENTED, text -> true, call.getKey());
        }
        refused(() -> db.rawGet(key), Status.Code.UNKNOWN, "tbtree: key not found", "what refused calls wrote");
    }

    private static Void whole(Asked asked) throws Exception {
        ImmuClient db = connect(asked);
        db.login(asked.username, asked.password);
        db.useDatabase(asked.database);
        FLOWS.get(asked.flow).run(asked, db);
        return null;
    }

    private static JsonObject answer(String result, String code, String text) {
        JsonObject answer = new JsonObject();
        answer.addProperty("result", result);
        if (code != null) {
            answer.addProperty("code", code);
        }
        if (text != null) {
            answer.addProperty("text", text);
        }
        return answer;
    }

    private static String trace(Throwable error) {
        StringBuilder text = new StringBuilder(error.toString());
        for (StackTraceElement element : error.getStackTrace()) {
            if (element.getClassName().startsWith(Flows.class.getName())) {
                text.append(" at line ").append(element.getLineNumber());
            }
        }
        return text.toString();
    }

    private static JsonObject run(Asked asked, ExecutorService worker) throws InterruptedException {
        Future<Void> running = worker.submit((Callable<Void>) () -> whole(asked));
        try {
            running.get(FLOW_S, TimeUnit.SECONDS);
            return answer("ok", null, null);
        } catch (TimeoutException error) {
            return answer("error", Status.Code.DEADLINE_EXCEEDED.name(), "not done within " + FLOW_S + " s");
        } catch (ExecutionException error) {
            Throwable cause = error.getCause();
            Throwable call = cause instanceof Otherwise ? cause.getCause() : cause;
            if (!(call instanceof StatusRuntimeException)) {
                return answer("wrong", null, trace(cause));
            }
            StatusRuntimeException refusal = (StatusRuntimeException) call;
            JsonObject answer = answer("error", refusal.getStatus().getCode().name(), textOf(refusal));
            if (cause instanceof Otherwise) {
                answer.addProperty("expected", cause.getMessage());
            }
            return answer;
        } finally {
            // This ends the calls of a flow that is late, too.
            open.forEach(ImmuClient::shutdown);
            open.clear();
        }
    }

    public static void main(String[] arguments) throws Exception {
        Gson gson = new Gson();
        JsonObject hello = new JsonObject();
        hello.add("flows", gson.toJsonTree(FLOWS.keySet()));
        hello.addProperty("sdk", "immudb4j " + arguments[0]);
        System.out.println(hello);
        ExecutorService worker = Executors.newSingleThreadExecutor();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(run(gson.fromJson(line, Asked.class), worker));
        }
        worker.shutdownNow();
    }
}
